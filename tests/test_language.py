"""Documents use the terms of the field."""

import re
from pathlib import Path

import pytest

from tests.documents import documents, prose, read

# Pattern -> what to write instead.
WORDS = {
    r"pictures?": "image",
    r"callers?": "client",
    r"patience|patient(ly)?": "timeout",
    r"told|tells?|telling": "report, show, print, contain",
    r"ask(s|ed|ing)?": "request",
    r"answered": "classified, returned",
    r"h[au]ng(s|ing)? up": "disconnect, close the connection",
    r"hear(s|d|ing)? out": "wait for",
    r"newcomers?": "new connection",
    r"whoever|everybody|somebody": "client, user",
    r"reckon(s|ed|ing)?": "estimate, count",
    r"anew": "again, new",
    r"likeliest": "most probable",
    r"sure[rs]t?": "more confident",
    r"under way": "in progress",
    r"besides?": "next to, in addition to",
    r"(goes|go|going|went|gone) on": "continue",
    r"(comes?|came|coming) about": "happen, be created",
    r"to the letter": "exactly",
    r"stands? or falls?": "be independent",
    r"hither|thither|lest|wherein|whereof|thereof|therein|whence|whilst": "plain words",
}


def found_in(text: str) -> list[str]:
    """Each word to replace, with what to write instead."""
    return [
        f"{match[0]!r}: {better}"
        for words, better in WORDS.items()
        for match in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", documents(), ids=str)
def test_documents_are_in_plain_english(path: Path) -> None:
    assert found_in(prose(read(path))) == []


def test_words_are_found_in_prose_only() -> None:
    text = "# Title\n\nA Picture, [told](ask.md) `caller`.\n\n    patience\n\n```sh\nanew\n```\n"
    assert found_in(prose(text)) == ["'Picture': image", "'told': report, show, print, contain"]
