package webhook_test

import (
	"encoding/json"
	"fmt"

	"gancho/pkg/egress"
	"gancho/pkg/event"
	"gancho/pkg/webhook"
)

// Two spellings of one address are one URL, and so one suspension; addresses that are not public are refused.
func ExampleNormalizeURL() {
	policy, err := egress.New(egress.Config{AllowPorts: []string{"443"}})
	if err != nil {
		panic(err)
	}
	for _, raw := range []string{"HTTPS://ERP.example.com:443/in#top", "https://erp.example.com/in", "https://2130706433/", "http://erp.example.com/"} {
		if normal, problem := webhook.NormalizeURL(raw, policy); problem != nil {
			fmt.Println(problem.Code)
		} else {
			fmt.Println(normal)
		}
	}
	// Output:
	// https://erp.example.com/in
	// https://erp.example.com/in
	// url_forbidden_address
	// url_forbidden_scheme
}

func ExampleIndex_Match() {
	index := webhook.NewIndex()
	for id, name := range map[string]string{"0190a5d4-0000-7000-8000-000000000001": "crm_deal_*", "0190a5d4-0000-7000-8000-000000000002": "crm_contact_created"} {
		stored, err := json.Marshal(webhook.Webhook{ID: id, Account: "acme", EventName: webhook.Pattern(name), Status: webhook.Active, URL: "https://erp.example.com/"})
		if err != nil {
			panic(err)
		}
		w, err := webhook.Decode(stored)
		if err != nil {
			panic(err)
		}
		index.Put(w)
	}
	for _, name := range []string{"crm_deal_created", "crm_contact_created", "crm_task_created"} {
		matched := index.Match(nil, &event.Event{Account: "acme", Name: name, Body: []byte(`{}`)}, nil)
		fmt.Println(name, len(matched))
	}
	// Output:
	// crm_deal_created 1
	// crm_contact_created 1
	// crm_task_created 0
}
