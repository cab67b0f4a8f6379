// Package delivery makes one attempt: one signed HTTP request to a receiver, and names its outcome.
// It does not retry, wait or store.
//
// # The request
//
// The event's bytes as they are, for every method, with the headers of the API's documentation and those of
// Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature). Nothing else decides about it: no
// redirects, cookies, decompression or proxy settings from the environment.
//
// # The verdict
//
// The status decides, and it has to arrive with all headers within the attempt's timeout, counted from the
// start of [Sender.Send]: name look-up, connection, TLS and the request included. After it the body may
// take 500 ms more, never past the timeout; a slow or broken body changes nothing about the verdict.
// At most 64 KiB of it are read. A body that ends in time leaves the connection usable for the next
// attempt, any other costs the receiver its connection.
//
//	what happens                                                    reason
//	2xx                                                             (delivered)
//	3xx                                                             redirect
//	429                                                             rate_limited
//	other 4xx                                                       status_4xx
//	5xx                                                             status_5xx
//	101 Switching Protocols                                         status_1xx
//	status below 100 or above 599, not HTTP,
//	connection lost inside the headers, HTTP/2 stream reset,
//	much more sent than asked for                                   bad_response
//	more than 64 KiB of headers, informational ones included        header_limit
//	name not found, name servers fail                               dns
//	connection refused or unreachable, or lost before the first
//	byte of an answer (the request may have arrived)                connect
//	handshake or certificate not acceptable (a receiver that
//	misses a client certificate may also end as connect); whether
//	a certificate was revoked is not checked                        tls
//	address or port not open (see package egress), http:// when
//	that is switched off                                            blocked_address
//	nothing of the above within the timeout                         timeout
//	the request cannot be built from its parts                      internal_error
//
// An informational status (1xx but 101) is not an answer; the status after it decides.
//
// # How often the request is sent
//
// Once. It is sent again only when the receiver cannot have processed it, at most twice per attempt: a kept connection
// was closed before a byte was written, or an HTTP/2 receiver said so (REFUSED_STREAM, GOAWAY with a lower stream id,
// HTTP_1_1_REQUIRED, after which the host gets HTTP/1.1).
//
// # Connections
//
// HTTP/1.1 is an exchange of our own over connections that are kept by scheme, host and client certificate; HTTP/2 is
// net/http's. A connection takes requests for 60 to 110 s, ends when the receiver announced it, and is not used again
// after an answer with malformed headers. All tables are bounded.
//
// # Secrets
//
// An [Outcome] holds no path, query, auth key or signature of the request: they are masked, also where the
// receiver echoes the auth key verbatim in its headers or body.
package delivery
