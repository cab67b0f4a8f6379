package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"gancho/pkg/client"
)

// api answers as Gancho does.
func api(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.Method + " " + r.URL.Path {
	case "POST /crm/v2/webhooks":
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"data":{"id":"0190a5d4-0000-7000-8000-000000000001","status":"active","signing_secret":"whsec_bXkgc2VjcmV0"}}`)
	case "GET /crm/v2/webhooks":
		fmt.Fprint(w, `{"data":[{"id":"0190a5d4-0000-7000-8000-000000000001","name":"Deals","status":"active"}],"links":{}}`)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"not_found","detail":"this account has no webhook with that id"}]}`)
	}
}

func Example() {
	server := httptest.NewServer(http.HandlerFunc(api))
	defer server.Close()

	c, err := client.New(client.Config{URL: server.URL, Token: "gancho_example"})
	if err != nil {
		panic(err)
	}
	created, err := c.CreateWebhook(context.Background(), client.Change{
		EventName: new("crm_deal_*"), URL: new("https://erp.example.com/in"),
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(created.Value.Status, created.Value.SigningSecret) // shown this once: keep it
	// Output: active whsec_bXkgc2VjcmV0
}

// Pages are fetched as the loop goes on.
func ExampleClient_Webhooks() {
	server := httptest.NewServer(http.HandlerFunc(api))
	defer server.Close()

	c, err := client.New(client.Config{URL: server.URL, Token: "gancho_example"})
	if err != nil {
		panic(err)
	}
	for w, err := range c.Webhooks(context.Background()) {
		if err != nil {
			panic(err)
		}
		fmt.Println(w.Value.Name, w.Value.Status)
	}
	// Output: Deals active
}

// A refusal has a status and, for each problem, a code to branch on and a sentence for people.
func ExampleError() {
	server := httptest.NewServer(http.HandlerFunc(api))
	defer server.Close()

	c, err := client.New(client.Config{URL: server.URL, Token: "gancho_example"})
	if err != nil {
		panic(err)
	}
	_, err = c.Webhook(context.Background(), "0190a5d4-0000-7000-8000-00000000000f")
	if refused, is := errors.AsType[*client.Error](err); is {
		fmt.Println(refused.Status, refused.Problems[0].Code)
	}
	// Output: 404 not_found
}
