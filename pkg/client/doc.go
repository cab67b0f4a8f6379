// Package client speaks the management API over HTTP.
//
// Its guarantees:
//
//   - Every call ends: connecting, the answer's headers and the whole call have their own limits, and an
//     answer of more than 32 MiB is refused. A tail is the exception; it ends when its context does.
//   - A call that was refused with 429 waits as Retry-After says and is sent again, a few times. Nothing else
//     is sent twice, so a call whose answer was lost may have had its effect.
//   - The token goes to the configured address only: redirects are refused, and of a list's links.next only
//     the query is used.
//   - The server's answer is kept as it came (Result.Raw), so a newer server's members are not lost.
package client
