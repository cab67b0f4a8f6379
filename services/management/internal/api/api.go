// Package api is the JSON API: RD Station CRM's shape of requests and answers (API v2), extended. It turns
// requests into calls of the domain packages and their results into answers, and decides nothing else.
//
// Every request passes the same checks in this order: a known path and method (404, 405), a valid token (401, 429),
// the right account and access (400, 403), known query parameters (400), a body of the right size, type and form
// (413, 415, 400, 422). A request that has more than one meaning is refused. The OpenAPI document is made from the
// same table as the routes. RD Station's older API is served at its own paths; see v1.go.
package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/audit"
	"gancho/pkg/event"
	"gancho/pkg/numbers"
	"gancho/services/management/internal/accesslog"
	"gancho/services/management/internal/accounts"
	"gancho/services/management/internal/auth"
	"gancho/services/management/internal/catalogue"
	"gancho/services/management/internal/dryrun"
	"gancho/services/management/internal/erasures"
	"gancho/services/management/internal/httpstatus"
	"gancho/services/management/internal/idempotency"
	"gancho/services/management/internal/ingest"
	"gancho/services/management/internal/notifications"
	"gancho/services/management/internal/portal"
	"gancho/services/management/internal/problem"
	"gancho/services/management/internal/replays"
	"gancho/services/management/internal/tail"
	"gancho/services/management/internal/webhooks"
)

// Prefix of all paths.
const Prefix = "/crm/v2"

// requestTimeout bounds the work for one request.
const requestTimeout = 20 * time.Second

// Options of an API; all are required.
type Options struct {
	Gate          *auth.Gate
	Webhooks      *webhooks.Service
	Notifications *notifications.Service
	Ingest        *ingest.Service
	Tail          *tail.Service
	Replays       *replays.Service
	Erasures      *erasures.Service
	Accounts      *accounts.Service
	Idempotency   *idempotency.Store
	Catalogue     *catalogue.Catalogue
	DryRun        *dryrun.Service
	Portal        *portal.Service
	Audit         *audit.Log
	Numbers       *numbers.Keeper
	// PublicURL begins the links in answers, such as https://gancho.example.com; empty: the request's scheme and host.
	PublicURL string
	// EgressAddresses are the addresses that requests to receivers come from, as the operator publishes them.
	EgressAddresses []string
	// Stopping is closed when the process stops: streams end.
	Stopping <-chan struct{}
	// EventMaxBytes is the largest event that ingest takes.
	EventMaxBytes int
	Log           *zap.Logger
	Metrics       prometheus.Registerer
}

// API serves everything under Prefix. It is safe for concurrent use.
type API struct {
	Options

	mux      *http.ServeMux
	document []byte // OpenAPI
	tag      string // of the document
	requests *accesslog.Log
}

// New returns the API.
func New(o Options) (*API, error) {
	a := &API{Options: o, mux: http.NewServeMux()}
	a.Log = o.Log.Named("api")
	a.requests = accesslog.New(a.Log, o.Metrics, "gancho_http", "the API")
	routes := a.routes()
	var err error
	if a.document, err = document(routes, a.Catalogue.Types()); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(a.document)
	a.tag = `"` + hex.EncodeToString(sum[:12]) + `"`
	docs, err := docsPage(a.document)
	if err != nil {
		return nil, err
	}
	byPath := map[string]map[string]*route{}
	for i := range routes {
		routes[i].path = Prefix + routes[i].path
	}
	routes = append(routes, a.older()...)
	routes = append(routes, route{method: http.MethodGet, path: "/docs", public: true, anyQuery: true, handle: docs.show})
	for i := range routes {
		r := &routes[i]
		if r.write && !r.rawBody { // events are no changes of settings
			r.handle = a.audited(r)
		}
		if byPath[r.path] == nil {
			byPath[r.path] = map[string]*route{}
		}
		byPath[r.path][r.method] = r
	}
	for p, methods := range byPath {
		a.mux.HandleFunc(p, func(w http.ResponseWriter, r *http.Request) { a.dispatch(w, r, methods) })
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		a.serve(w, r, &route{path: "unknown", public: true, anyQuery: true, handle: func(*call) (*answer, error) {
			return nil, problem.New(problem.Missing, "no_such_path", "there is nothing at this path; see "+Prefix+"/openapi.json")
		}})
	})
	return a, nil
}

// ServeHTTP serves one request. A slash at the end of the path is ignored, and a second one where a client joined a
// base URL and a path.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, base := range []string{"", Prefix, strings.TrimSuffix(olderPrefix, "/webhooks")} {
		if rest, twice := strings.CutPrefix(r.URL.Path, base+"//"); twice && r.URL.RawPath == "" {
			r.URL.Path = base + "/" + rest
		}
	}
	if p := r.URL.Path; len(p) > 1 && strings.HasSuffix(p, "/") && !strings.HasSuffix(p, "//") {
		r.URL.Path, r.URL.RawPath = strings.TrimSuffix(p, "/"), strings.TrimSuffix(r.URL.RawPath, "/")
	}
	// The mux would redirect a path with dot segments; nothing of ours has any.
	if clean := path.Clean(r.URL.Path); clean != r.URL.Path {
		r.URL.Path, r.URL.RawPath = "/", ""
	}
	a.mux.ServeHTTP(w, r)
}

func (a *API) dispatch(w http.ResponseWriter, r *http.Request, methods map[string]*route) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if found := methods[method]; found != nil {
		a.serve(w, r, found)
		return
	}
	allowed := make([]string, 0, len(methods))
	for m := range methods {
		allowed = append(allowed, m)
	}
	slices.Sort(allowed)
	allow := strings.Join(allowed, ", ")
	a.serve(w, r, &route{path: "unknown", public: true, anyQuery: true, handle: func(c *call) (*answer, error) {
		c.w.Header().Set("Allow", allow)
		return nil, problem.New(problem.NotAllowed, "method_not_allowed", "this path takes "+allow)
	}})
}

// route is one row of the table that makes both the routes and the OpenAPI document.
type route struct {
	method, path string
	id           string // operationId
	summary      string
	about        string
	tag          string
	public       bool // needs no token
	write        bool // needs a token that may change things
	query        []parameter
	anyQuery     bool // unknown parameters are ignored: it is a page, or refused for another cause
	headers      []parameter
	body         any // the type of data, nil for none
	rawBody      bool
	action       bool     // takes an empty body, or one whose data is null or {}
	idempotent   bool     // obeys Idempotency-Key
	anyAccount   bool     // of an operator without X-Account-Id about all accounts
	operator     bool     // an operator's call about the account in the path
	forAccount   bool     // an operator's call about the account in X-Account-Id
	allAccounts  bool     // an operator's call, of one account or all
	results      []result // on success
	fails        []int    // statuses besides those every route may have
	older        bool     // of RD Station's older API: the token may be in the query or the body
	stream       bool     // writes its answer itself, for as long as it likes
	handle       func(*call) (*answer, error)
}

type parameter struct {
	name, about string
	kind        string // string or integer; for the OpenAPI document
	format      string
	enum        []string
}

type result struct {
	status int
	about  string
	data   any // the type of data, nil for an answer without a body
	list   bool
	media  string // "" for JSON
	etag   bool
}

// call is one request on its way through a handler.
type call struct {
	ctx    context.Context //nolint:containedctx // of the request, with the handler's time limit
	w      http.ResponseWriter
	r      *http.Request
	caller auth.Caller
	query  url.Values
	base   string // what links begin with: scheme and host
	// idempotencyKey is the client's, "" when it sent none.
	idempotencyKey string
	fields         []zap.Field // more for the log line
	// The members of a change's record: the id of the new object, and its state now where the API does not show it.
	object string
	after  any
}

// answer is a handler's answer. Body is encoded as JSON when it is not nil.
type answer struct {
	status int
	body   any
	etag   uint64
}

// data is an answer with one resource.
func data(status int, v any) *answer { return &answer{status: status, body: map[string]any{"data": v}} }

// serve answers one request and writes its log line.
func (a *API) serve(w http.ResponseWriter, r *http.Request, rt *route) {
	began := time.Now()
	rec := &accesslog.Recorder{ResponseWriter: w}
	id := requestID(r)
	c := &call{ctx: r.Context(), w: rec, r: r, base: a.base(r)}
	h := w.Header()
	h.Set("X-Request-Id", id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if !rt.stream {
		var cancel context.CancelFunc
		c.ctx, cancel = context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
	}
	failure := a.requests.Guard(id, func() error { return a.answer(c, rt) })
	if failure != nil && rec.Status == 0 {
		writeProblem(rec, failure)
	}
	a.requests.Write(accesslog.Line{ID: id, Route: rt.path, Request: r, Answer: rec, Began: began, Caller: c.caller, Failure: failure, More: c.fields})
}

// answer runs the gates and the handler, and writes the handler's answer.
func (a *API) answer(c *call, rt *route) error {
	if !rt.public {
		var err error
		if rt.older {
			if err := tokenOfOlder(c); err != nil {
				return err
			}
		}
		if c.caller, err = a.check(c, rt); err != nil {
			return err
		}
	}
	if err := c.readQuery(rt); err != nil {
		return err
	}
	if !rt.operator { // the id of an account may be any text
		for _, name := range []string{"id", "event"} {
			if id := c.r.PathValue(name); len(id) == 36 && uuid.Validate(id) == nil { // RFC 9562, section 4: in either case
				c.r.SetPathValue(name, strings.ToLower(id))
			}
		}
	}
	if rt.idempotent && len(c.r.Header.Values("Idempotency-Key")) > 0 {
		return a.once(c, rt)
	}
	ans, err := rt.handle(c)
	if err != nil || ans == nil { // nil: the handler wrote it
		return err
	}
	body, err := ans.encode(c)
	if err != nil {
		return err
	}
	write(c.w, ans.status, body)
	return nil
}

var errOperatorOnly = problem.New(problem.Forbidden, "operator_only", "this call needs an operator's token")

// check lets the request in. The account of an operator's call is the one in its path.
func (a *API) check(c *call, rt *route) (auth.Caller, error) {
	switch {
	case rt.anyAccount:
		return a.Gate.CheckAny(c.r, rt.write)
	case rt.allAccounts:
		return a.Gate.CheckOperator(c.r, rt.write)
	case rt.forAccount:
		caller, err := a.Gate.Check(c.r, rt.write)
		if err == nil && !caller.Operator {
			err = errOperatorOnly
		}
		return caller, err
	case !rt.operator:
		return a.Gate.Check(c.r, rt.write)
	}
	id := c.r.PathValue("id")
	if !event.ValidAccount(id) {
		return auth.Caller{}, problem.NotFound("account")
	}
	if c.r.Header.Get("X-Account-Id") == "" {
		c.r.Header.Set("X-Account-Id", id)
	}
	caller, err := a.Gate.Check(c.r, rt.write)
	switch {
	case err != nil:
		return caller, err
	case !caller.Operator:
		return caller, errOperatorOnly
	case caller.Account != id:
		return caller, problem.New(problem.Malformed, "bad_account", "X-Account-Id names another account than the path; leave the header out")
	}
	return caller, nil
}

// encode returns the body of the answer and sets the headers that belong to it.
func (ans *answer) encode(c *call) ([]byte, error) {
	if ans.etag > 0 {
		c.w.Header().Set("ETag", `"`+strconv.FormatUint(ans.etag, 10)+`"`)
	}
	if ans.body == nil {
		return nil, nil
	}
	return encode(ans.body)
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return b.Bytes(), nil
}

// write writes an answer of JSON, or one without a body. The client may have gone.
func write(w http.ResponseWriter, status int, body []byte) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// WriteProblem answers with an error.
func WriteProblem(w http.ResponseWriter, e *problem.Error) {
	w.Header().Set("Cache-Control", "no-store")
	writeProblem(w, e)
}

func writeProblem(w http.ResponseWriter, e *problem.Error) {
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	if e.Kind == problem.Unauthenticated {
		w.Header().Set("WWW-Authenticate", `Bearer realm="gancho"`)
	}
	body, err := encode(map[string]any{"errors": e.Problems})
	if err != nil { // strings can be encoded
		body = []byte(`{"errors":[]}`)
	}
	write(w, httpstatus.Of(e), body)
}

// requestID is the client's X-Request-Id when it is harmless, else a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	ok := id != "" && len(id) <= 64
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
	}
	if ok {
		return id
	}
	return rand.Text()
}
