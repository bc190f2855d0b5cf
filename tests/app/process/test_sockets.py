import socket
import sys
from collections.abc import Iterator

import pytest

from app.process.sockets import has_pending_connections, ignore_new_connections


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_connection_is_pending_until_it_is_accepted(listening: socket.socket) -> None:
    assert not has_pending_connections(listening.fileno())
    with socket.create_connection(listening.getsockname()):
        assert has_pending_connections(listening.fileno())
        listening.accept()[0].close()
        assert not has_pending_connections(listening.fileno())


@pytest.mark.skipif(sys.platform != "linux", reason="socket filters are Linux's")
def test_new_connections_are_ignored_and_pending_ones_stay(listening: socket.socket) -> None:
    with socket.create_connection(listening.getsockname()) as pending:
        ignore_new_connections(listening.fileno())
        with pytest.raises(TimeoutError):
            socket.create_connection(listening.getsockname(), timeout=0.2)
        accepted, _ = listening.accept()
        with accepted:
            pending.sendall(b"request")
            assert accepted.recv(100) == b"request"
        assert not has_pending_connections(listening.fileno())
