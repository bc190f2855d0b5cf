"""An HTTP server that is not Tenfold."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer


@dataclass
class AnotherProgram:
    """Responds to GET with status 200 and an empty object.

    Attributes:
        url: of its root.
        responses: status, headers and body of the responses to POST, in order. The last one repeats.
        posted: when each POST arrived, as time.monotonic().
    """

    url: str
    responses: list[tuple[int, Mapping[str, str], bytes]]
    posted: list[float] = field(default_factory=list)


@contextmanager
def another_program(*responses: tuple[int, Mapping[str, str], bytes]) -> Iterator[AnotherProgram]:
    """Run the server in a thread. Without `responses`, a POST is answered as a GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond(200, {}, b"{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            program.posted.append(time.monotonic())
            self._respond(*program.responses[min(len(program.posted), len(program.responses)) - 1])

        def _respond(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        program = AnotherProgram(f"http://127.0.0.1:{server.server_port}", list(responses) or [(200, {}, b"{}")])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield program
        finally:
            server.shutdown()
            thread.join()
