"""A proxy before an S3 endpoint that fails one request in five, in each way that a network has.

It can also refuse all writes for a while, or take its time.
"""

import http.client
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class FlakyProxy:
    """Serves on a loopback port until closed; `failed` counts what it let fail.

    While `refusing` is set every write is refused; `delay` is waited, in seconds, before a write.
    """

    def __init__(self, port, share=0.2, seed=0):
        self.failed = self.served = self.refused = 0
        self.refusing = False
        self.delay = 0.0
        self._chance = random.Random(seed)
        self._share = share
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def forward(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                fault = outer.draw(writes=self.command in ("PUT", "POST", "DELETE"))
                if fault == "refuse":
                    self.send_response(503)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                if fault == "drop":
                    self.close_connection = True
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                if fault == "lose":
                    # It was done, and nobody is told.
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                length = answer.getheader("content-length") if self.command == "HEAD" else len(data)
                self.send_header("content-length", str(length or 0))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def draw(self, *, writes):
        """The fault of the next request, or None."""
        if writes and self.delay:
            time.sleep(self.delay)
        with self._lock:
            self.served += 1
            if writes and self.refusing:
                self.refused += 1
                return "refuse"
            if self._chance.random() >= self._share:
                return None
            self.failed += 1
            return self._chance.choice(("refuse", "drop", "lose"))

    def close(self):
        self._server.shutdown()
        self._server.server_close()
