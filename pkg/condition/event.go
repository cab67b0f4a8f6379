package condition

import (
	"encoding/json"
	"index/suffixarray"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
	"unique"

	"github.com/tidwall/gjson"
)

// Event is an event that conditions are held against. It remembers its look-ups, so each path costs once.
// It is not safe for concurrent use.
type Event struct {
	root    entry
	changed []string
	origin  string
	looked  map[unique.Handle[string]]*found
}

// NewEvent returns the event with that body, which must be well-formed JSON, and those values of the CRM's headers.
func NewEvent(body []byte, changed []string, origin string) *Event {
	return &Event{
		root: entry{raw: gjson.ParseBytes(body).Raw}, changed: changed, origin: origin,
		looked: map[unique.Handle[string]]*found{},
	}
}

// find returns the values at the path of a test.
func (e *Event) find(t *test) *found {
	f := e.looked[t.path]
	if f == nil {
		f = e.look(t)
		e.looked[t.path] = f
	}
	return f
}

func (e *Event) look(t *test) *found {
	if t.segments == nil {
		return e.header(t.path.Value())
	}
	at := &e.root
	for _, segment := range t.segments {
		if at = at.child(segment); at == nil {
			return &found{}
		}
	}
	return &found{scalar: scalarOf(gjson.Parse(at.raw)), raw: at.raw}
}

func (e *Event) header(path string) *found {
	switch {
	case path == PathChanged && len(e.changed) > 0:
		return &found{scalar: scalar{kind: changed}, paths: e.changed}
	case path == PathOrigin && e.origin != "":
		return &found{scalar: scalar{kind: text, text: e.origin}}
	}
	return &found{}
}

// entry is a value of the body: a member of an object or an element of an array. The contents of an object or array are
// read when it is first asked for.
type entry struct {
	name    string
	raw     string
	entries []entry
	byName  map[string]int // of an object with many members
	read    bool
}

// few is how many members are searched one by one.
const few = 32

// child returns the member or element that a segment names, nil when there is none.
func (n *entry) child(segment string) *entry {
	list := strings.HasPrefix(n.raw, "[")
	if !list && !strings.HasPrefix(n.raw, "{") {
		return nil
	}
	if !n.read {
		n.open()
	}
	at := -1
	switch {
	case list:
		at = position(segment)
	case n.byName != nil:
		if i, ok := n.byName[segment]; ok {
			at = i
		}
	default:
		for i := range n.entries {
			if n.entries[i].name == segment {
				return &n.entries[i]
			}
		}
	}
	if at < 0 || at >= len(n.entries) {
		return nil
	}
	return &n.entries[at]
}

func (n *entry) open() {
	n.read = true
	gjson.Parse(n.raw).ForEach(func(key, value gjson.Result) bool {
		n.entries = append(n.entries, entry{name: key.Str, raw: value.Raw})
		return true
	})
	if len(n.entries) <= few || n.raw[0] == '[' {
		return
	}
	n.byName = make(map[string]int, len(n.entries))
	for i, e := range slices.Backward(n.entries) { // the first of a name counts
		n.byName[e.name] = i
	}
}

// position returns the index that a segment is, -1 when it is none.
func position(segment string) int {
	if segment[0] == '0' && segment != "0" || segment[0] == '+' {
		return -1
	}
	n, err := strconv.Atoi(segment)
	if err != nil {
		return -1
	}
	return n
}

// found is the values at a path; nothing when its kind is missing.
type found struct {
	scalar

	raw   string   // of a value of the body
	paths []string // of $changed

	elements map[scalar]struct{} // of an array, once it was searched
	searched int                 // how often a long string was searched
	index    *suffixarray.Index
}

// contains reports whether a string contains another, an array an element, or $changed a path or one below it.
func (f *found) contains(v *scalar) bool {
	switch f.kind {
	case text:
		return v.kind == text && f.search(v.text)
	case array:
		if f.elements == nil {
			f.elements = map[scalar]struct{}{}
			gjson.Parse(f.raw).ForEach(func(_, e gjson.Result) bool {
				f.elements[scalarOf(e)] = struct{}{}
				return true
			})
		}
		_, there := f.elements[*v]
		return there
	case changed:
		return slices.ContainsFunc(f.paths, func(path string) bool {
			rest, below := strings.CutPrefix(path, v.text)
			return below && (rest == "" || rest[0] == '.')
		})
	case missing, null, boolean, number, object:
	}
	return false
}

// A long string that many conditions search is indexed, so that one account's searches do not hold up the events of
// others: a string of 1 MiB takes tens of milliseconds in all instead of one for each condition.
const (
	longString   = 16 << 10
	manySearches = 64
)

func (f *found) search(s string) bool {
	if f.index == nil {
		if f.searched++; len(f.text) < longString || f.searched < manySearches {
			return strings.Contains(f.text, s)
		}
		f.index = suffixarray.New([]byte(f.text))
	}
	return s == "" || len(f.index.Lookup([]byte(s), 1)) > 0
}

// MaxFoundBytes bounds the value that is shown of a condition.
const MaxFoundBytes = 1024

func (f *found) shown() json.RawMessage {
	raw := f.raw
	switch {
	case f.kind == missing:
		return nil
	case f.kind == changed:
		out, _ := json.Marshal(f.paths) // strings always encode
		raw = string(out)
	case f.raw == "":
		out, _ := json.Marshal(f.text)
		raw = string(out)
	}
	if len(raw) <= MaxFoundBytes {
		return json.RawMessage(strings.ToValidUTF8(raw, "\uFFFD"))
	}
	if f.kind == text {
		raw = f.text
	}
	cut := min(len(raw), MaxFoundBytes)
	for cut > 0 && cut < len(raw) && !utf8.RuneStart(raw[cut]) {
		cut--
	}
	out, _ := json.Marshal(raw[:cut] + "…") // a string always encodes
	return out
}
