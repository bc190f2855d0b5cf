"""What a decoder may do to the process that it runs in. Children import this."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.serving.children import Result
from model import UnreadableImage


def echo(data: bytes, value: object) -> Result:
    return value, data


def pid(data: bytes) -> Result:
    return os.getpid(), b""


def abort(data: bytes) -> Result:
    os.abort()


def crash(data: bytes) -> Result:
    import ctypes

    ctypes.string_at(0)
    return None, b""


def leave(data: bytes) -> Result:
    os._exit(3)


def loop(data: bytes) -> Result:
    while True:
        pass


def sleep(data: bytes) -> Result:
    time.sleep(600)
    return None, b""


def write_garbage(data: bytes) -> Result:
    for descriptor in range(3, 256):
        try:
            os.write(descriptor, os.urandom(10_000))
        except OSError:
            continue
    time.sleep(600)
    return None, b""


def close_everything(data: bytes) -> Result:
    os.closerange(3, 256)
    time.sleep(600)
    return None, b""


def write_file(data: bytes, path: str) -> Result:
    with Path(path).open("wb") as file:
        file.write(bytes(1_000_000))
    return None, b""


def print_much(data: bytes) -> Result:
    for stream in (1, 2):
        os.write(stream, b"x" * 10_000_000)
    return "printed", b""


def allocate(data: bytes, size: int) -> Result:
    return int(np.ones(size, np.uint8).sum()), b""


def refuse(data: bytes) -> Result:
    raise UnreadableImage("it is damaged")


def stop_itself(data: bytes) -> Result:
    raise RuntimeError("a bug")


ENDINGS: tuple[Callable[[bytes], Result], ...] = (abort, crash, leave, loop, write_garbage)
