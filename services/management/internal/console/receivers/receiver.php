<?php
// A receiver of notifications: SECRET=whsec_... php -S 127.0.0.1:8900 receiver.php

const TOLERANCE = 5 * 60; // seconds between the sender's clock and ours

/** True when $body came from whoever holds $secret (whsec_...), a short while ago. */
function verify(string $secret, array $headers, string $body): bool
{
    $id = $headers['webhook-id'] ?? '';
    $timestamp = $headers['webhook-timestamp'] ?? '';
    if ($id === '' || !ctype_digit($timestamp) || abs(time() - (int) $timestamp) > TOLERANCE) {
        return false;
    }
    $key = base64_decode(substr($secret, strlen('whsec_')));
    $want = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$timestamp.$body", $key, true));
    $good = false;
    foreach (explode(' ', $headers['webhook-signature'] ?? '') as $signature) {
        // Two signatures come while the secret is being rotated: one good one is enough.
        $good = hash_equals($want, $signature) || $good;
    }
    return $good;
}

$headers = array_change_key_case(getallheaders());
$body = file_get_contents('php://input');
if (!verify(getenv('SECRET'), $headers, $body)) {
    http_response_code(401);
    return;
}
// The same notification can come twice: a real receiver looks webhook-id up in its database first.
file_put_contents('php://stdout', ($headers['gancho-event'] ?? '') . ' ' . $body . "\n");
http_response_code(204); // within 5 s: what takes longer belongs into a queue of yours
