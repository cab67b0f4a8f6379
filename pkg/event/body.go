package event

import (
	"bytes"
	"encoding/json"
	"mime"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/tidwall/gjson"
)

// members are the parts of an object's top level that Gancho reads; a missing member does not exist.
type members struct {
	eventName, transaction, document gjson.Result
	specVersion, id, source, ceType  gjson.Result
	data, traceparent                gjson.Result
	binary                           bool // data_base64 is there
	repeated                         bool // event_name or transaction_uuid stands twice
	wrapperRepeated                  bool // a member that a wrapper's meaning depends on stands twice
}

// envelope is a body on its way to be an event, with what its headers or its wrapper said of it.
type envelope struct {
	members

	body                      []byte
	ceID, ceType, traceparent string
}

// parseObject accepts one JSON object, white space around it allowed, and reads its members. encoding/json
// refuses nesting deeper than 10,000.
func parseObject(body []byte) (members, *Rejected) {
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	switch {
	case len(trimmed) == 0:
		return members{}, &Rejected{NotObject, "the body is empty"}
	case bytes.HasPrefix(trimmed, []byte("\ufeff")):
		return members{}, &Rejected{BadJSON, "the body begins with a byte order mark, which is not JSON: send it without"}
	case !json.Valid(body):
		return members{}, &Rejected{BadJSON, "the body is not one well-formed JSON value"}
	case trimmed[0] != '{':
		return members{}, &Rejected{NotObject, "the body is JSON but not an object"}
	}
	m := readMembers(body)
	if m.repeated {
		return members{}, &Rejected{BadJSON, "event_name or transaction_uuid stands twice in the body: receivers could read either"}
	}
	return m, nil
}

// readMembers reads the top level of a well-formed object in one pass. The results share memory with body.
func readMembers(body []byte) (m members) {
	// gjson reads strings; body is never changed, so a view of it is one.
	text := unsafe.String(unsafe.SliceData(body), len(body)) //nolint:gosec // a view that does not outlive body
	gjson.Parse(text).ForEach(func(key, value gjson.Result) bool {
		var into *gjson.Result
		repeated := &m.wrapperRepeated
		switch key.Str {
		case "event_name":
			into, repeated = &m.eventName, &m.repeated
		case "transaction_uuid":
			into, repeated = &m.transaction, &m.repeated
		case "document":
			into, repeated = &m.document, new(bool)
		case "specversion":
			into = &m.specVersion
		case "id":
			into = &m.id
		case "source":
			into = &m.source
		case "type":
			into = &m.ceType
		case "data":
			into = &m.data
		case "traceparent":
			into = &m.traceparent
		case "data_base64":
			m.binary = true
			return true
		default:
			return true
		}
		if into.Exists() {
			*repeated = true
			return true
		}
		*into = value
		return true
	})
	return m
}

// documentID returns document.id as text: a string, or an integer's digits, of 1 to 128 characters. Anything
// else is no id, "".
func documentID(document gjson.Result) string {
	if !document.IsObject() {
		return ""
	}
	id := document.Get("id")
	switch {
	case id.Type == gjson.String && utf8.RuneCountInString(id.Str) <= 128:
		return strings.Clone(id.Str)
	case id.Type == gjson.Number && len(id.Raw) <= 128 && !strings.ContainsAny(id.Raw, ".eE"):
		return strings.Clone(id.Raw)
	}
	return ""
}

// DocumentOf returns the document.id of an event's body as text, "" when it has none.
func DocumentOf(body []byte) string { return documentID(readMembers(body).document) }

// MediaTypeStructured is the media type of a CloudEvent in structured mode.
const MediaTypeStructured = "application/cloudevents+json"

// Structured reports whether a content type is that of CloudEvents' structured mode.
func Structured(contentType string) bool {
	if contentType == "" {
		return false
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && media == MediaTypeStructured
}

// wrapped reports whether the message is a CloudEvent in structured mode: it says so, or its body has the
// members of one and is no event itself.
func wrapped(header func(string) string, m members) bool {
	for _, name := range []string{HeaderContentType, "content-type"} { // the broker keeps the case that came
		if Structured(header(name)) {
			return true
		}
	}
	return !m.eventName.Exists() && m.specVersion.Exists() && m.id.Exists() && m.source.Exists() && m.ceType.Exists() &&
		(m.data.Exists() || m.binary)
}

// unwrap returns the event inside a wrapper.
func unwrap(outer envelope) (envelope, *Rejected) {
	switch m := outer.members; {
	case m.wrapperRepeated:
		return envelope{}, &Rejected{BadJSON, "a member of the CloudEvent stands twice: its meaning is open"}
	case m.binary:
		return envelope{}, &Rejected{NotObject, "the CloudEvent has data_base64; send its data as a JSON object"}
	case !m.data.IsObject():
		return envelope{}, &Rejected{NotObject, "the data of the CloudEvent is not an object"}
	case m.ceType.Exists() && m.ceType.Type != gjson.String:
		return envelope{}, &Rejected{EventNameMismatch, "the type of the CloudEvent is not a string"}
	}
	start := outer.data.Index
	body := outer.body[start : start+len(outer.data.Raw) : start+len(outer.data.Raw)]
	inner, rejected := parseObject(body)
	if rejected != nil {
		return envelope{}, rejected
	}
	e := envelope{members: inner, body: body, ceID: outer.ceID, ceType: outer.members.ceType.Str, traceparent: outer.traceparent}
	if outer.id.Type == gjson.String && outer.id.Str != "" {
		e.ceID = outer.id.Str
	}
	if e.traceparent == "" {
		e.traceparent = outer.members.traceparent.Str
	}
	return e, nil
}
