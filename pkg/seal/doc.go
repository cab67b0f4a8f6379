// Package seal keeps secrets at rest: signing secrets and auth keys are stored sealed with AES-256-GCM
// under keys that live outside the broker, in the file ENCRYPTION_KEY_FILE names.
//
// # Sealed form
//
//	v1.<key id>.<base64url of nonce and ciphertext>
//
// The nonce has 96 random bits, so one key may seal 2^32 values (NIST SP 800-38D, section 8.3): far more
// than webhooks are ever registered. The version, the key id and the caller's context are authenticated
// with the value: a sealed value that is changed, or copied to another webhook, account or field, does not
// open.
//
// # Key file
//
//	# comments and blank lines are skipped
//	2026-11:<base64 of 32 bytes>
//	2025-11:<base64 of 32 bytes>
//
// The first key seals, all of them open. To rotate, [Add] a key, restart the services, seal again the values that
// [KeyID] finds under another key than [Keyring.Current] (gancho keys reseal), then [Remove] the old one.
package seal
