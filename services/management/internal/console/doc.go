// Package console is the pages for people: webhooks and their health, the fate of a notification,
// permanent failures, replays and the live tail. It calls the same packages as the API and decides nothing
// that the API would not.
//
// # Foundations
//
// Pages are made on the server with html/template and work without JavaScript, but for the live tail. The
// script adds local times, refreshed parts and small comforts. Both come from this binary; nothing is loaded
// from elsewhere, and the Content-Security-Policy allows nothing else.
//
// # Sessions
//
// A person signs in with an API token. The session is a cookie sealed with the first key of
// ENCRYPTION_KEY_FILE: it holds the token, the chosen account and the end of the session, so every replica
// can open it and none has to keep it. Each request asks the gate again for the token's rights: a token that
// was removed or has expired ends its sessions. A session lasts 8 hours. Signing out deletes the cookie, and
// this process refuses copies of it until they end by themselves; other replicas do not know of that.
//
// The cookie is HttpOnly and SameSite=Strict, and Secure with the prefix __Host- unless the browser says
// (header Origin) that the page was opened over plain HTTP, which only works for a loopback address or with
// CONSOLE_PLAIN_HTTP=true. Headers a proxy might add are not asked. Every POST passes
// http.CrossOriginProtection.
//
// # Text of strangers
//
// Names, URLs, events and answers of receivers come from strangers. They are only ever shown as text, with
// control characters and those that change the direction of writing made visible.
package console
