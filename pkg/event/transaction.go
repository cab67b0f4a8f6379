package event

import "github.com/tidwall/gjson"

// TransactionUUID returns the body's transaction_uuid as [Parse] reads it, "" when it has none.
func TransactionUUID(body []byte) string { return gjson.GetBytes(body, "transaction_uuid").Str }
