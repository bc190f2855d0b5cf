"""python -m app.process.healthcheck: exit code 0 if the service of this environment is ready. For containers.

It connects to the address of the settings itself, without the proxy that the environment may name. It imports none of
the service, because it runs every few seconds.
"""

import http.client
import os
import socket
import sys

from app.environment import cleaned

_TIMEOUT = 2.0


def is_ready() -> bool:
    """Whether GET /readyz has status 200.

    Raises:
        OSError: there is no connection.
        http.client.HTTPException: the response is not HTTP.
    """
    connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT)
    if path := _setting("UDS"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_TIMEOUT)
        connection.sock.connect(path)
    else:
        # Linux connects to this machine for 0.0.0.0 and ::.
        address = (_setting("HOST") or "127.0.0.1", int(_setting("PORT") or 8000))
        connection.sock = socket.create_connection(address, _TIMEOUT)
    connection.request("GET", "/readyz")
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status == http.client.OK


def _setting(name: str) -> str:
    return cleaned(os.environ.get(f"TENFOLD_{name}", ""))


if __name__ == "__main__":
    sys.exit(0 if is_ready() else "the service is not ready")
