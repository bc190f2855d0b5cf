"""Numbers and names in messages and files."""

import os
import re

# Line breaks and other control characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 image", "1,000 images"."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def printable(name: str) -> str:
    """The name of a file as text of one line that UTF-8 can encode: other bytes and control characters are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
