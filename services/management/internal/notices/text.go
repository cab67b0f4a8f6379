package notices

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"

	"gancho/services/management/internal/language"
)

//go:embed notice.html
var noticeHTML string

var noticeTemplate = template.Must(template.New("notice").Parse(noticeHTML))

// about is the content of a notice.
type about struct {
	batch

	Kind, Name, EventName string
	Parked                *uint64 // the waiting notifications, nil when not known
	Link                  string  // to the webhook's page, "" without PUBLIC_URL
	Unsubscribe           string
}

// fact is one line of a notice.
type fact struct{ Label, Value string }

// said is a notice in words.
type said struct {
	Subject, Lead string
	Facts         []fact
	LinkText      string
	Link          string
	LeaveText     string
	Unsubscribe   string
	Lang          language.Language
}

type text = language.Text

var (
	subjects = map[string]text{
		"at_risk": {English: "Webhook {name}: deliveries fail", Portuguese: "Webhook {name}: as entregas estão falhando"},
		"at_risk:credentials_refused": {
			English: "Webhook {name}: the receiver refuses our credentials", Portuguese: "Webhook {name}: o receptor recusa nossas credenciais",
		},
		"suspended":         {English: "Webhook {name} is suspended", Portuguese: "A URL do webhook {name} foi suspensa"},
		"resumed":           {English: "Webhook {name} works again", Portuguese: "O webhook {name} voltou a funcionar"},
		"disabled":          {English: "Webhook {name} was disabled", Portuguese: "O webhook {name} foi desativado"},
		"permanent_failure": {English: "Webhook {name}: notifications failed for good", Portuguese: "Webhook {name}: notificações falharam em definitivo"},
	}
	leads = map[string]text{
		"at_risk": {
			English:    "Every recent request to {host} failed. If that goes on, the URL is suspended: its notifications then wait, and nothing is lost.",
			Portuguese: "Todas as requisições recentes a {host} falharam. Se isso continuar, a URL será suspensa: as notificações ficarão em espera e nada se perderá.",
		},
		"at_risk:credentials_refused": {
			English:    "{host} answers 401 or 403 to every request: it refuses our credentials. Check the authentication that the webhook sends and the one that the receiver expects.",
			Portuguese: "{host} responde 401 ou 403 a todas as requisições: ele recusa nossas credenciais. Confira a autenticação que o webhook envia e a que o receptor espera.",
		},
		"suspended": {
			English:    "{host} answered with errors all the time, so no requests are sent to it for now. Its notifications wait. Gancho will try again by itself.",
			Portuguese: "{host} respondeu com erros o tempo todo, por isso nenhuma requisição é enviada por enquanto. As notificações ficam em espera. O Gancho tentará de novo automaticamente.",
		},
		"resumed": {
			English:    "{host} is active again. Waiting notifications are being sent, oldest first.",
			Portuguese: "{host} está ativo de novo. As notificações em espera estão sendo enviadas, das mais antigas às mais novas.",
		},
		"disabled": {
			English:    "The webhook gets no new events until it is set active again.",
			Portuguese: "O webhook não recebe eventos novos até que alguém o ative de novo.",
		},
		"permanent_failure": {
			English:    "All six attempts of some notifications failed. Their payloads are kept, and you can send them again in the console.",
			Portuguese: "As seis tentativas de algumas notificações falharam. O conteúdo delas está guardado, e você pode reenviá-las pelo console.",
		},
	}
	labels = map[string]text{
		"event":    {English: "Event", Portuguese: "Evento"},
		"host":     {English: "Receiver", Portuguese: "Receptor"},
		"at":       {English: "When", Portuguese: "Quando"},
		"reason":   {English: "Reason", Portuguese: "Motivo"},
		"last":     {English: "Last answers", Portuguese: "Últimas respostas"},
		"failures": {English: "Failures", Portuguese: "Falhas"},
		"parked":   {English: "Waiting notifications", Portuguese: "Notificações em espera"},
		"next":     {English: "Next try", Portuguese: "Próxima tentativa"},
		"forecast": {English: "Suspended at this rate", Portuguese: "Suspensão prevista neste ritmo"},
		"count":    {English: "Times since {since}", Portuguese: "Ocorrências desde {since}"},
		"link":     {English: "Open the webhook in the console", Portuguese: "Abrir o webhook no console"},
		"leave":    {English: "Send me no more of these notices", Portuguese: "Não quero mais receber estes avisos"},
	}
	reasons = map[string]text{
		"always_failing":          {English: "it always failed", Portuguese: "sempre falhou"},
		"credentials_refused":     {English: "it refuses our credentials", Portuguese: "ele recusa nossas credenciais"},
		"by_hand":                 {English: "by hand", Portuguese: "manualmente"},
		"gone":                    {English: "the receiver answered 410 Gone", Portuguese: "o receptor respondeu 410 Gone"},
		"expired_while_suspended": {English: "waited too long for a suspended URL", Portuguese: "esperou demais por uma URL suspensa"},
		"timeout":                 {English: "no answer in time", Portuguese: "sem resposta a tempo"},
		"dns":                     {English: "name not found", Portuguese: "nome não encontrado"},
		"connect":                 {English: "no connection", Portuguese: "sem conexão"},
		"tls":                     {English: "TLS failed", Portuguese: "falha no TLS"},
		"redirect":                {English: "redirect", Portuguese: "redirecionamento"},
		"status_4xx":              {English: "refused (4xx)", Portuguese: "recusado (4xx)"},
		"status_5xx":              {English: "server error (5xx)", Portuguese: "erro no servidor (5xx)"},
		"rate_limited":            {English: "too many requests (429)", Portuguese: "excesso de requisições (429)"},
		"blocked_address":         {English: "the address is not public", Portuguese: "o endereço não é público"},
		"bad_response":            {English: "not an HTTP response", Portuguese: "não é uma resposta HTTP"},
		"internal_error":          {English: "a fault in Gancho", Portuguese: "uma falha no Gancho"},
		"header_limit":            {English: "too many headers", Portuguese: "cabeçalhos em excesso"},
		"status_1xx":              {English: "no final answer (1xx)", Portuguese: "sem resposta final (1xx)"},
	}
)

// of returns the text of a change: that of its reason, where there is one.
func of(texts map[string]text, kind, reason string) text {
	if t, ok := texts[kind+":"+reason]; ok {
		return t
	}
	return texts[kind]
}

func reasonIn(reason string, l language.Language) string {
	if t, ok := reasons[reason]; ok {
		return t.In(l)
	}
	if n, err := strconv.Atoi(reason); err == nil {
		return fmt.Sprintf("HTTP %d", n)
	}
	return reason
}

// stamp is a time of a notice, in UTC: its reader's zone is not known.
func stamp(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05 UTC") }

// line keeps what strangers wrote on one line.
func line(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 }), " ")
}

// say puts a notice into words.
func (a *about) say(l language.Language) said {
	c := a.Newest
	fill := func(t text, arguments ...any) string {
		return language.Fill(t.In(l), arguments, func(v any) string { return line(fmt.Sprint(v)) })
	}
	s := said{
		Subject: fill(of(subjects, a.Kind, c.Reason), "name", a.Name), Lead: fill(of(leads, a.Kind, c.Reason), "host", c.URLHost), Lang: l,
		LinkText: labels["link"].In(l), Link: a.Link, LeaveText: labels["leave"].In(l), Unsubscribe: a.Unsubscribe,
	}
	add := func(label, value string) {
		if value != "" {
			s.Facts = append(s.Facts, fact{fill(labels[label], "since", stamp(a.First)), line(value)})
		}
	}
	add("event", a.EventName)
	add("host", c.URLHost)
	add("at", stamp(c.At))
	if c.Reason != "" {
		add("reason", reasonIn(c.Reason, l))
	}
	var last []string
	for _, status := range c.Evidence.Statuses {
		last = append(last, reasonIn(status, l))
	}
	add("last", strings.Join(last, ", "))
	if c.Evidence.Failures > 0 {
		add("failures", strconv.Itoa(c.Evidence.Failures))
	}
	if a.Parked != nil {
		add("parked", strconv.FormatUint(*a.Parked, 10))
	}
	if c.Until != nil && !c.Until.IsZero() {
		label := "next"
		if a.Kind == "at_risk" {
			label = "forecast"
		}
		add(label, stamp(*c.Until))
	}
	if a.Count > 1 {
		add("count", strconv.Itoa(a.Count))
	}
	return s
}

// plain is the text of an e-mail.
func (s said) plain() string {
	var b strings.Builder
	b.WriteString(s.Lead + "\n\n")
	for _, f := range s.Facts {
		b.WriteString(f.Label + ": " + f.Value + "\n")
	}
	if s.Link != "" {
		b.WriteString("\n" + s.LinkText + ": " + s.Link + "\n")
	}
	if s.Unsubscribe != "" {
		b.WriteString("\n" + s.LeaveText + ": " + s.Unsubscribe + "\n")
	}
	return b.String()
}

// html is the same for programs that show HTML. It loads nothing.
func (s said) html() (string, error) {
	var b bytes.Buffer
	err := noticeTemplate.Execute(&b, s)
	return b.String(), err
}
