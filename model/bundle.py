"""A bundle: a folder with card.json and the files that the card lists."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.card import ModelCard, read_card
from model.errors import IntegrityError, SaveError, cannot_write

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
        IntegrityError: a file is missing, is no regular file, or has another hash.
    """
    for name, expected in card.files.items():
        try:
            if (folder / name).exists() and not (folder / name).is_file():
                raise IntegrityError(f"{folder / name} is not a regular file: fetch the bundle again")
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise IntegrityError(f"{folder / name} is missing or unreadable: fetch the bundle again") from error
        if found != expected:
            raise IntegrityError(f"{folder / name} does not have the SHA-256 on its card: fetch the bundle again")


def update_bundle(folder: Path, files: Mapping[str, bytes], card: ModelCard) -> None:
    """Write files into an existing bundle, the card last.

    All files are on the disk, and the old ones copied, before the first replacement. If the process ends between two
    replacements, the hashes in the card do not match.

    Args:
        folder: of the bundle.
        files: relative path to contents.
        card: the new card.

    Raises:
        SaveError: a file cannot be written. The bundle is unchanged.
    """
    contents = {folder / name: content for name, content in {**files, CARD_FILE: to_json(card).encode()}.items()}
    partials = {path: path.with_name(f".{path.name}.partial") for path in contents}
    copies = {path: path.with_name(f".{path.name}.old") for path in contents if path.is_file()}
    new_folders = {path.parent for path in contents if not path.parent.exists()}
    replaced: list[Path] = []
    try:
        for parent in new_folders:
            parent.mkdir()
        for path, partial in partials.items():
            _write_to_disk(partial, contents[path])
        for path, copy in copies.items():
            shutil.copy2(path, copy)
        for path, partial in partials.items():
            partial.replace(path)
            replaced.append(path)
        for changed in {folder, *(path.parent for path in contents)}:
            _sync_folder(changed)
    except OSError as error:
        for path in replaced:
            if path in copies:
                copies[path].replace(path)
            else:
                path.unlink()
        raise SaveError(cannot_write(f"to {folder}", error, "change a copy of the bundle")) from error
    finally:
        for unused in (*partials.values(), *copies.values()):
            with contextlib.suppress(OSError):
                unused.unlink()
        for parent in new_folders:
            with contextlib.suppress(OSError):
                parent.rmdir()  # only if it is empty


def to_json(card: ModelCard) -> str:
    """The card as indented JSON, with each list of numbers and each object of a list on one line."""
    text = card.model_dump_json(indent=2)
    text = re.sub(r"\[([-+.\de,\s]+)\]", lambda row: "[" + " ".join(row[1].split()) + "]", text)
    text = re.sub(r"(?<=[\[,]\n)( *)\{([^{}]*)\}", lambda part: part[1] + "{" + " ".join(part[2].split()) + "}", text)
    return text + "\n"


def check_new(folder: Path) -> None:
    """Check that a new bundle can be written, before the work for it. Leaves no files.

    Args:
        folder: of the bundle.

    Raises:
        SaveError: the folder exists or cannot be created.
    """
    if folder.exists():
        raise SaveError(f"{folder} exists: choose another --out, or move it away")
    try:
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=parent).cleanup()
    except OSError as error:
        raise _not_written(folder, error) from error


def write_bundle(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new bundle, completely or not at all.

    Args:
        folder: must not exist.
        files: relative path to contents, including card.json.

    Raises:
        SaveError: the folder exists or cannot be written. No partial folder remains.
    """
    check_new(folder)
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        partial.chmod(0o755)
        for name, contents in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_to_disk(path, contents)
        for written in {partial, *((partial / name).parent for name in files)}:
            _sync_folder(written)
        partial.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise _not_written(folder, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _not_written(folder: Path, error: OSError) -> SaveError:
    return SaveError(cannot_write(folder, error, "choose another --out"))


def _write_to_disk(path: Path, contents: bytes) -> None:
    with path.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system can: neither Windows nor some file systems do."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
