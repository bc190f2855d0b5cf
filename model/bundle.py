"""A weights/ folder: opened with its hashes checked, written in one step."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.card import ModelCard, read_card
from model.errors import IntegrityError, SaveError

CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose files agree with its card."""

    folder: Path
    card: ModelCard


def open_bundle(folder: Path) -> Bundle:
    """Read the card and check the SHA-256 of every file that it lists.

    Raises:
        CardError: the card is missing or malformed.
        IntegrityError: a file is missing, or differs from the card.
    """
    card = read_card(folder / CARD_FILE)
    for name, expected in card.files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise IntegrityError(f"{folder / name} is missing or unreadable: fetch the bundle again") from error
        if found != expected:
            raise IntegrityError(f"{folder / name} does not have the SHA-256 on its card: fetch the bundle again")
    return Bundle(folder, card)


def update_bundle(folder: Path, files: Mapping[str, bytes], card: ModelCard) -> None:
    """Put files into a folder, and the card that lists them last.

    All are written before the first takes its place. Killed between two of these, a folder whose files are replaced is
    not whole, and its hashes say so.

    Raises:
        SaveError: it cannot be written; it is as it was.
    """
    contents = {**files, CARD_FILE: readable(card).encode()}
    partials = {name: folder / f".{name}.partial" for name in contents}
    try:
        for name, partial in partials.items():
            partial.write_bytes(contents[name])
        for name, partial in partials.items():
            partial.replace(folder / name)
    except OSError as error:
        raise SaveError(f"cannot write into {folder} ({error.strerror}): make room or copy the bundle") from error
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def readable(card: ModelCard) -> str:
    """The card as indented JSON, each row of numbers and each member of a list on one line."""
    text = card.model_dump_json(indent=2)
    text = re.sub(r"\[([-+.\de,\s]+)\]", lambda row: "[" + " ".join(row[1].split()) + "]", text)
    return (
        re.sub(r"(?<=[\[,]\n)( *)\{([^{}]*)\}", lambda part: part[1] + "{" + " ".join(part[2].split()) + "}", text)
        + "\n"
    )


def write_bundle(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder of files, whole or not at all.

    Args:
        folder: must not exist.
        files: relative path to contents, the card among them.

    Raises:
        SaveError: the folder exists, or cannot be written; nothing is left behind.
    """
    if folder.exists():
        raise SaveError(f"{folder} exists: choose another --out, or move it away")
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        partial.chmod(0o755)
        for name, contents in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
        partial.rename(folder)
    except OSError as error:
        raise SaveError(f"cannot write {folder} ({error.strerror}): make room or choose another --out") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
