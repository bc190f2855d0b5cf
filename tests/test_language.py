"""Documents, comments, docstrings and names use the terms of the field."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.documents import documents, prose, read, sources

# Pattern -> what to write instead.
WORDS = {
    r"pictures?": "image",
    r"callers?": "client",
    r"patience|patient(ly)?": "timeout",
    r"told|tells?|telling": "report, show, print, contain",
    r"ask(s|ed|ing)?": "request",
    r"h[au]ng(s|ing)? up": "disconnect, close the connection",
    r"hear(s|d|ing)? out": "wait for",
    r"newcomers?": "new connection",
    r"whoever|everybody|somebody": "client, user",
    r"reckon(s|ed|ing)?": "estimate, count",
    r"anew": "again, new",
    r"likeliest": "most probable",
    r"sure[rs]t?": "more confident",
    r"under way": "in progress",
    r"(goes|go|going|went|gone) on": "continue",
    r"(comes?|came|coming) about": "happen, be created",
    r"to the letter": "exactly",
    r"stands? or falls?": "be independent",
    r"hither|thither|lest|wherein|whereof|thereof|therein|whence|whilst": "plain words",
}

# In documents only.
DOCUMENT_WORDS = {r"answered": "classified, returned", r"besides?": "next to, in addition to"}

# Names that users have: fields of card.json and of GET /model, metrics, an option.
PUBLIC_NAMES = {"pictures", "_pictures", "patience"}


def found_in(text: str, words: Mapping[str, str] = WORDS) -> list[str]:
    """Each word to replace, with what to write instead."""
    return [
        f"{match[0]!r}: {better}"
        for pattern, better in words.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", documents(), ids=str)
def test_documents_are_in_plain_english(path: Path) -> None:
    assert found_in(prose(read(path)), WORDS | DOCUMENT_WORDS) == []


def explanations(source: str) -> Iterator[str]:
    """The comments and docstrings of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            # Attributes are listed by their names.
            yield re.sub(r"^\s*\w+: ", "", node.value.value, flags=re.MULTILINE)


def names(source: str) -> set[str]:
    """The identifiers of a Python file."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_code_is_in_plain_english() -> None:
    found = {}
    for path in sources():
        source = read(path)
        words = {name: re.sub(r"_+|(?<=[a-z])(?=[A-Z])", " ", name) for name in names(source) - PUBLIC_NAMES}
        texts = [*map(prose, explanations(source)), *words.values()]
        if problems := [problem for text in texts for problem in found_in(text)]:
            found[str(path)] = problems
    assert found == {}


def test_words_are_found_in_prose_only() -> None:
    text = "# Title\n\nA Picture, [told](ask.md) `caller`.\n\n    patience\n\n```sh\nanew\n```\n"
    assert found_in(prose(text)) == ["'Picture': image", "'told': report, show, print, contain"]
