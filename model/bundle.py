"""A bundle: a folder with card.json and the files that the card lists."""

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
    """A folder whose files have the hashes in its card."""

    folder: Path
    card: ModelCard


def open_bundle(folder: Path) -> Bundle:
    """Read the card and verify the SHA-256 of each file that it lists.

    Raises:
        CardError: the card is missing or invalid.
        IntegrityError: a file is missing or has another hash.
    """
    card = read_card(folder / CARD_FILE)
    verify_files(folder, card)
    return Bundle(folder, card)


def verify_files(folder: Path, card: ModelCard) -> None:
    """Verify the SHA-256 of each file that a card lists.

    Raises:
        IntegrityError: a file is missing or has another hash.
    """
    for name, expected in card.files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise IntegrityError(f"{folder / name} is missing or unreadable: fetch the bundle again") from error
        if found != expected:
            raise IntegrityError(f"{folder / name} does not have the SHA-256 on its card: fetch the bundle again")


def update_bundle(folder: Path, files: Mapping[str, bytes], card: ModelCard) -> None:
    """Write files into an existing bundle, the card last.

    All files are written completely before the first one replaces an old file. If the process ends between two
    replacements, the hashes in the card do not match.

    Args:
        folder: of the bundle.
        files: relative path to contents.
        card: the new card.

    Raises:
        SaveError: a file cannot be written. The bundle is unchanged.
    """
    contents = {**files, CARD_FILE: to_json(card).encode()}
    partials = {name: (folder / name).with_name(f".{Path(name).name}.partial") for name in contents}
    try:
        for name, partial in partials.items():
            partial.write_bytes(contents[name])
        for name, partial in partials.items():
            partial.replace(folder / name)
    except OSError as error:
        raise SaveError(f"cannot write to {folder} ({error.strerror}): free disk space or copy the bundle") from error
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def to_json(card: ModelCard) -> str:
    """The card as indented JSON, with each list of numbers and each object of a list on one line."""
    text = card.model_dump_json(indent=2)
    text = re.sub(r"\[([-+.\de,\s]+)\]", lambda row: "[" + " ".join(row[1].split()) + "]", text)
    text = re.sub(r"(?<=[\[,]\n)( *)\{([^{}]*)\}", lambda part: part[1] + "{" + " ".join(part[2].split()) + "}", text)
    return text + "\n"


def write_bundle(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new bundle, completely or not at all.

    Args:
        folder: must not exist.
        files: relative path to contents, including card.json.

    Raises:
        SaveError: the folder exists or cannot be written. No partial folder remains.
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
        raise SaveError(f"cannot write {folder} ({error.strerror}): free disk space or choose another --out") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
