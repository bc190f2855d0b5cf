"""A server that always predicts the same class, started with python -m tests.benchmarks.constant."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_BODY = json.dumps({"label": "unicorn", "probability": 1.0}).encode()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(_BODY)))
        self.end_headers()
        self.wfile.write(_BODY)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["BENCH_PORT"])), _Handler).serve_forever()
