package bus

// BucketClaims holds who has a destination: which webhook of an account has one combination of event name
// and URL. Creating a key there is what keeps two replicas from registering the same webhook twice.
const BucketClaims = "WEBHOOK_CLAIMS"
