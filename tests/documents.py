"""The Markdown documents and Python files of the repository, and what is in them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Folders that are not part of the repository.
_IGNORED = {"data", "runs"}
# Others in weights/ were trained here.
_BUNDLES = {"resnet18-cifar10", "resnet9-cifar10"}

_FENCED = re.compile(r"^ *(```+)(\w*)\n(.*?)^ *\1$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?:(?: {4}|\t).*\n|\n)+", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")


def documents() -> list[Path]:
    """Every Markdown document, relative to the root."""
    found = []
    for entry in sorted(ROOT.iterdir()):
        if entry.name.startswith(".") or entry.name in _IGNORED:
            continue
        found += sorted(entry.rglob("*.md")) if entry.is_dir() else [entry] * (entry.suffix == ".md")
    paths = [path.relative_to(ROOT) for path in found]
    return [path for path in paths if path.parts[0] != "weights" or path.parts[1] in _BUNDLES]


def sources() -> list[Path]:
    """Every Python file, relative to the root."""
    folders = ("app", "benchmarks", "deploy", "docs", "model", "tests")
    return [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def read(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of code in a language."""
    return [content for _, name, content in _FENCED.findall(text) if name == language]


def inline_code(text: str) -> list[str]:
    """What is in single backticks, outside of blocks of code."""
    return _INLINE.findall(_FENCED.sub("", text))


def prose(text: str) -> str:
    """The text without front matter, code, and the targets of links."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = _FENCED.sub("", text)
    text = _INDENTED.sub("\n", text)
    text = _INLINE.sub("", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def links(text: str) -> list[str]:
    """The targets of links and images."""
    return [first or second for first, second in _LINK.findall(_FENCED.sub("", text))]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next heading of the same level or a higher one."""
    match = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,6}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"there is no heading {heading!r}"
    start = match.start(2)
    end = re.search(rf"^#{{1,{len(match[1])}}} ", text[start:], re.MULTILINE)
    return text[start : start + end.start()] if end else text[start:]


def tables(text: str) -> Iterator[list[list[str]]]:
    """Each table, as rows of cells, without its header."""
    for found in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in found.replace("| |", "|  |").splitlines()
        ]
        yield rows[2:]
