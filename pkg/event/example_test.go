package event_test

import (
	"fmt"

	"github.com/google/uuid"

	"gancho/pkg/event"
)

// message is what the CRM publishes.
func message(body string) event.Message {
	return event.Message{
		Subject: event.Subject("acme", "crm_deal_updated"), Header: func(string) string { return "" }, Body: []byte(body), Sequence: 7,
	}
}

// One change of two documents is two events: the document is part of the key.
func ExampleParse() {
	for _, document := range []string{"deal-1", "deal-2"} {
		ev, rejected := event.Parse(message(`{"transaction_uuid":"b2fe9543","document":{"id":"` + document + `"}}`))
		if rejected != nil {
			panic(rejected)
		}
		fmt.Println(ev.Account, ev.Name, ev.ID == event.ID("acme", "crm_deal_updated", "b2fe9543/"+document))
	}
	// Output:
	// acme crm_deal_updated true
	// acme crm_deal_updated true
}

// A message that cannot be an event has a reason from a closed list. REJECTED_EVENTS keeps its bytes.
func ExampleParse_rejected() {
	_, rejected := event.Parse(message(`{"event_name":"crm_deal_created"}`))
	fmt.Println(rejected.Reason)
	// Output: event_name_mismatch
}

// The id follows from the event and the webhook, so a repetition after a crash makes no second notification, and
// receivers recognise it as webhook-id.
func ExampleNotificationID() {
	webhook := uuid.MustParse("0190a5d4-0000-7000-8000-000000000001")
	id := event.ID("acme", "crm_deal_updated", "b2fe9543/deal-1")
	fmt.Println(event.NotificationID(id, webhook) == event.NotificationID(id, webhook))
	fmt.Println(event.NotificationID(id, webhook) == event.NotificationID(id, uuid.MustParse("0190a5d4-0000-7000-8000-000000000002")))
	// Output:
	// true
	// false
}
