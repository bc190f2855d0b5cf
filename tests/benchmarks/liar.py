"""A server that always says the same, as the tests start it: python -m tests.benchmarks.liar."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ANSWER = json.dumps({"label": "unicorn", "probability": 1.0}).encode()


class _Liar(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(_ANSWER)))
        self.end_headers()
        self.wfile.write(_ANSWER)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["BENCH_PORT"])), _Liar).serve_forever()
