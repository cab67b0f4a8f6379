package notifications

import (
	"time"

	"gancho/pkg/notification"
	"gancho/pkg/suspension"
	"gancho/services/management/internal/explain"
	"gancho/services/management/internal/language"
)

// View is a notification as its owner sees it.
type View struct {
	ID            string      `json:"id" format:"uuid" doc:"also the webhook-id header of every request of it"`
	WebhookID     string      `json:"webhook_id" format:"uuid"`
	EventID       string      `json:"event_id" format:"uuid"`
	EventName     string      `json:"event_name"`
	State         string      `json:"state" enum:"pending,retrying,parked,delivered,permanently_failed,cancelled"`
	Reason        *string     `json:"reason" nullable:"true" doc:"of the last failure, or why it is parked"`
	Sends         int         `json:"sends" doc:"1, and one more for each resend or replay"`
	AttemptsMade  int         `json:"attempts_made" doc:"of the current send, at most 6"`
	NextAttemptAt *time.Time  `json:"next_attempt_at"`
	ReplayID      *string     `json:"replay_id" nullable:"true" doc:"the replay that opened the current send"`
	CreatedAt     time.Time   `json:"created_at"`
	UpdatedAt     time.Time   `json:"updated_at"`
	Attempts      []Attempt   `json:"attempts" doc:"of all sends, oldest first"`
	Explain       Explanation `json:"explain"`
	Partial       bool        `json:"partial,omitempty" doc:"older attempts are not shown: they have aged out, or there are very many"`
}

// Attempt is one HTTP request. Secrets in its headers are masked.
type Attempt struct {
	Number          int                   `json:"number" minimum:"1" maximum:"6"`
	Send            int                   `json:"send"`
	StartedAt       time.Time             `json:"started_at"`
	Outcome         string                `json:"outcome" enum:"delivered,failed"`
	Reason          *string               `json:"reason" nullable:"true"`
	HTTPStatus      *int                  `json:"http_status" nullable:"true"`
	Detail          *string               `json:"detail" nullable:"true" doc:"one sentence with the cause of a failure"`
	DurationMS      float64               `json:"duration_ms"`
	Phases          notification.PhasesMS `json:"phases_ms"`
	RequestHeaders  map[string]string     `json:"request_headers"`
	ResponseHeaders map[string]string     `json:"response_headers"`
	ResponseBody    string                `json:"response_body" doc:"the first 4 KiB, as text"`
	ResponseBase64  []byte                `json:"response_body_base64,omitempty" doc:"instead of response_body when that is not UTF-8"`
}

// Explanation says in one language why a notification is in its state, and what happens when.
type Explanation struct {
	Reason string `json:"reason" doc:"a code of a closed list"`
	Text   string `json:"text" doc:"for people, in English or Portuguese as Accept-Language asks"`
	Next   string `json:"next"`
}

func explanation(e explain.Explanation, l language.Language) Explanation {
	return Explanation{e.Reason, e.Why.In(l), e.Next.In(l)}
}

// Explain says why n is in its state, and what happens when.
func (s *Service) Explain(n *Notification) explain.Explanation {
	var flag *suspension.Flag
	if n.Webhook != nil {
		_, flag = s.webhooks.Status(n.Webhook)
	}
	newer := ""
	if n.newest != nil {
		newer = n.newest.Newer
	}
	var sentBy time.Time
	if n.perMinute > 0 {
		sentBy = time.Now().Add(time.Duration(n.waiting) * time.Minute / time.Duration(n.perMinute)).Truncate(time.Second)
	}
	return explain.Of(explain.Facts{
		State: n.State, Reason: n.Reason, Sends: n.Sends, AttemptsDone: n.AttemptsDone, NextAttemptAt: n.NextAttemptAt,
		Last: explain.LastAttempt(n.History, n.Sends), Flag: flag, Paused: n.paused, Newer: newer,
		PerMinute: n.perMinute, Waiting: n.waiting, SentBy: sentBy,
	})
}

// View returns n as its owner sees it, explained in a language.
func (s *Service) View(n *Notification, l language.Language) View {
	v := View{
		ID: n.ID, WebhookID: n.WebhookID, EventID: n.EventID, EventName: n.EventName, State: string(n.State),
		Reason: optional(n.Reason), Sends: n.Sends, AttemptsMade: n.AttemptsDone, ReplayID: optional(n.Replay),
		CreatedAt: n.CreatedAt, UpdatedAt: n.UpdatedAt, NextAttemptAt: n.next(), Attempts: []Attempt{}, Explain: explanation(s.Explain(n), l), Partial: n.Truncated,
	}
	for _, r := range n.History {
		if r.Attempt != nil {
			v.Attempts = append(v.Attempts, ShowAttempt(r.Attempt))
		}
	}
	return v
}

// ShowAttempt returns a as its owner sees it.
func ShowAttempt(a *notification.Attempt) Attempt {
	v := Attempt{
		Number: a.Number, Send: a.Send, StartedAt: a.StartedAt.Truncate(time.Millisecond), Outcome: a.Outcome, Reason: optional(string(a.Reason)),
		Detail: optional(a.Detail), DurationMS: a.DurationMS, Phases: a.Phases, RequestHeaders: a.RequestHeaders, ResponseHeaders: a.ResponseHeaders,
		ResponseBody: a.ResponseBody, ResponseBase64: a.ResponseBase64,
	}
	if a.HTTPStatus > 0 {
		v.HTTPStatus = &a.HTTPStatus
	}
	if v.RequestHeaders == nil {
		v.RequestHeaders = map[string]string{}
	}
	if v.ResponseHeaders == nil {
		v.ResponseHeaders = map[string]string{}
	}
	return v
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
