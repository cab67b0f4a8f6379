package api

import (
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// list is one page of resources.
type list struct {
	Data    any   `json:"data"`
	Links   links `json:"links"`
	HasMore bool  `json:"has_more"`
	Partial bool  `json:"partial,omitempty"`
}

// links lead to other pages of a list. They are absolute.
type links struct {
	First string  `json:"first"`
	Self  string  `json:"self"`
	Next  *string `json:"next"`
	Last  string  `json:"last,omitempty"`
}

// base returns what links begin with: the operator's address, else scheme and host that the client used.
func (a *API) base(r *http.Request) string {
	if a.PublicURL != "" {
		return strings.TrimSuffix(a.PublicURL, "/")
	}
	scheme := r.URL.Scheme
	switch {
	case scheme != "":
	case r.TLS != nil:
		scheme = "https"
	default:
		scheme = "http"
	}
	return scheme + "://" + r.Host
}

// link returns the address of this request with some parameters replaced; those with an empty value are left out.
func (c *call) link(replace ...string) string {
	query := url.Values{}
	maps.Copy(query, c.query)
	for i := 0; i+1 < len(replace); i += 2 {
		if query.Del(replace[i]); replace[i+1] != "" {
			query.Set(replace[i], replace[i+1])
		}
	}
	to := c.base + c.r.URL.EscapedPath()
	if len(query) > 0 {
		to += "?" + query.Encode()
	}
	return to
}

// paged is one page of all rows.
func paged[T any](c *call, all []T, number, size int) *answer {
	begin := min(min(number-1, maxPage)*size, len(all))
	return pageOf(c, all[begin:min(begin+size, len(all))], number, size, len(all))
}

// pageOf is the page with that number of total rows.
func pageOf[T any](c *call, rows []T, number, size, total int) *answer {
	at := func(n int) string { return c.link("page[number]", strconv.Itoa(n), "page[size]", strconv.Itoa(size)) }
	page := list{
		Data: rows, HasMore: number*size < total,
		Links: links{First: at(1), Self: c.link(), Last: at(max(1, (total+size-1)/size))},
	}
	if page.HasMore {
		next := at(number + 1)
		page.Links.Next = &next
	}
	return &answer{status: http.StatusOK, body: page}
}

// cursorPage is the page before the place after, "" on the last page.
func cursorPage[T any](c *call, rows []T, after string, partial bool) *answer {
	if rows == nil {
		rows = []T{} // null is no list
	}
	page := list{
		Data: rows, HasMore: after != "", Partial: partial,
		Links: links{First: c.link("page[after]", ""), Self: c.link()},
	}
	if page.HasMore {
		next := c.link("page[after]", after)
		page.Links.Next = &next
	}
	return &answer{status: http.StatusOK, body: page}
}
