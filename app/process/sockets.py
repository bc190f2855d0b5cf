"""Listening sockets, and closing one without losing a connection that the kernel has accepted."""

import ctypes
import errno
import os
import select
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path

from app.settings import Settings

# As in uvicorn.
_BACKLOG = 2048
# Bytes of a response that the kernel holds for a client, at most. Its own choice grows to megabytes for a client that
# does not read. Linux doubles the number for its own records.
_SEND_BUFFER = 128 << 10
# None on Windows.
AF_UNIX: int | None = getattr(socket, "AF_UNIX", None)
# Any local user may connect, as to a port. The folder of the socket restricts that.
_SOCKET_MODE = 0o666

# asm-generic/socket.h
_SO_ATTACH_FILTER = 26
# Classic BPF (linux/filter.h): operation, jump if true, jump if false, operand. The packet begins at the TCP header.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of TCP flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN without ACK?
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # accept the packet
)


class CannotListen(Exception):
    """The address of the settings cannot be listened on. The message names another choice."""


def listen(settings: Settings) -> list[socket.socket]:
    """Listen on the Unix socket of the settings, or on each address that the host of the settings has.

    `::` accepts connections of IPv6 and IPv4. Addresses that this machine does not have are left out if it has another.

    Raises:
        CannotListen: another process has the address, or it cannot be used.
    """
    try:
        found = [_listen_on_path(settings.uds)] if settings.uds else _listen_on_port(settings.host, settings.port)
        for each in found:  # the sockets of connections inherit it
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        return found
    except (OSError, UnicodeError) as error:  # the latter for a name that is no host name
        reason = str(getattr(error, "strerror", None) or error).partition(" (while ")[0]
        if settings.uds:
            raise CannotListen(
                f"cannot listen on {settings.uds} ({reason}): choose another path with TENFOLD_UDS"
            ) from error
        raise CannotListen(
            f"cannot listen on {_join(settings.host, settings.port)} ({reason}): choose another address with "
            "TENFOLD_HOST and TENFOLD_PORT, or with --host and --port of tenfold serve"
        ) from error


def _listen_on_port(host: str, port: int) -> list[socket.socket]:
    listening: list[socket.socket] = []
    missing: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        dual = address[0] == "::" and socket.has_dualstack_ipv6()
        at = (address[0], port, *address[2:])
        try:
            each = socket.create_server(at, family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for opened in listening:
                    opened.close()
                raise
            missing = error
        else:
            listening.append(each)
            port = each.getsockname()[1]  # one free port for all
    if missing and not listening:
        raise missing
    return listening


def _listen_on_path(path: Path) -> socket.socket:
    """Listen on a Unix socket, in the place of one that a process left behind.

    Raises:
        OSError: another process listens on it, or the path cannot be used.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "this file is not a socket", str(path))
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            try:
                client.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, "another process listens on this socket", str(path))
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
        path.chmod(_SOCKET_MODE)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def describe_address(listening: list[socket.socket]) -> str:
    """The addresses of listening sockets, for people."""
    return ", ".join(map(_url, listening))


def _url(listening: socket.socket) -> str:
    if listening.family == AF_UNIX:
        return f"unix socket {listening.getsockname()}"
    return f"http://{_join(*listening.getsockname()[:2])}"


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ignore_new_connections(descriptor: int) -> None:
    """Make the kernel drop new connection attempts to a listening socket, while the accept queue can be emptied.

    A Unix socket is removed from its folder instead, so that a new connection attempt fails at once.

    To close a listening socket resets the connections in its accept queue, although their clients see them as
    established. A client whose SYN is dropped tries again after a second and is refused if the socket is closed by
    then. The filter belongs to the socket, not to the descriptor: every process that shares the socket is affected,
    so only its owner may call this, and only at the final shutdown.

    Nothing happens to other sockets on other systems than Linux, or where a sandbox forbids filters.

    Args:
        descriptor: of the socket.
    """
    with socket.socket(fileno=os.dup(descriptor)) as duplicate, suppress(OSError):
        if duplicate.family == AF_UNIX:
            Path(duplicate.getsockname()).unlink()
            return
        if sys.platform != "linux":
            return
        instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _DROP_SYN))
        program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(instructions))
        duplicate.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def has_pending_connections(descriptor: int) -> bool:
    """Whether the accept queue of a listening socket holds connections."""
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable)
