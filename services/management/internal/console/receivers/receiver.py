#!/usr/bin/env python3
"""A receiver of notifications: SECRET=whsec_... PORT=8900 python3 receiver.py"""
import base64
import hashlib
import hmac
import http.server
import os
import time

TOLERANCE = 5 * 60  # seconds between the sender's clock and ours


def verify(secret, headers, body):
    """True when body came from whoever holds secret (whsec_...), a short while ago."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    try:
        if abs(time.time() - int(headers["webhook-timestamp"])) > TOLERANCE:
            return False
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        signatures = headers["webhook-signature"].split(" ")
    except (AttributeError, TypeError, ValueError):  # a header is missing or not a number
        return False
    want = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    # Two signatures come while the secret is being rotated: one good one is enough.
    return any([hmac.compare_digest(want.encode(), s.encode()) for s in signatures])


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, which saves a TLS handshake per request
    seen = set()  # ids already processed; a real receiver keeps them in its database

    def receive(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not verify(os.environ["SECRET"], self.headers, body):
            return self.answer(401)
        if self.headers["webhook-id"] not in self.seen:  # the same notification can come twice
            self.seen.add(self.headers["webhook-id"])
            print(self.headers["gancho-event"], body.decode(), flush=True)
        self.answer(200)  # within 5 s: what takes longer belongs into a queue of yours

    do_POST = do_PUT = do_PATCH = do_GET = do_DELETE = receive

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", 8900))), Receiver).serve_forever()
