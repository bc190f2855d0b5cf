"""Closing a listening socket without losing a connection that the kernel has accepted."""

import ctypes
import os
import select
import socket
import struct
import sys
from contextlib import suppress

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


def ignore_new_connections(descriptor: int) -> None:
    """Make the kernel drop new connection attempts to a listening socket, while the accept queue can be emptied.

    To close a listening socket resets the connections in its accept queue, although their clients see them as
    established. A client whose SYN is dropped tries again after a second and is refused if the socket is closed by
    then. The filter belongs to the socket, not to the descriptor: every process that shares the socket is affected,
    so only its owner may call this, and only at the final shutdown.

    Nothing happens on other systems than Linux, or where a sandbox forbids filters.

    Args:
        descriptor: of the socket.
    """
    if sys.platform != "linux":
        return
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _DROP_SYN))
    program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(instructions))
    with socket.socket(fileno=os.dup(descriptor)) as duplicate, suppress(OSError):
        duplicate.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def has_pending_connections(descriptor: int) -> bool:
    """Whether the accept queue of a listening socket holds connections."""
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable)
