"""The file of predictions and their right labels: SQLite, bounded by rows, bytes and age.

Several processes may have the same file open. A store belongs to one thread.
"""

import errno
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

# "Tenf" in ASCII, so that no other program's database is written to.
_APPLICATION_ID = 0x54656E66
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE predictions (
    number INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    time REAL NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    predicted TEXT NOT NULL,
    confidence REAL NOT NULL,
    label TEXT,
    image BLOB,
    reused INTEGER NOT NULL DEFAULT 0,
    UNIQUE (request_id, position)
);
CREATE INDEX predictions_by_time ON predictions (time);
"""
_COLUMNS = "request_id, position, time, model, version, predicted, confidence, label, image, reused"
# The probability of an image differs a little from batch to batch.
_ADD = f"""
INSERT INTO predictions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (request_id, position) DO UPDATE SET reused = 1
WHERE (model, version, predicted) <> (excluded.model, excluded.version, excluded.predicted)
OR ABS(confidence - excluded.confidence) > 0.0001
"""  # noqa: S608
# Milliseconds to wait for another process that writes.
_BUSY_TIMEOUT = 5_000
# The write-ahead log is cut to this size after large transactions.
_JOURNAL_BYTES = 8_000_000
# Bytes of a row without its image, estimated.
_ROW_BYTES = 300


NONE = ""
"""The right label of an image that shows none of the classes. No class has this name."""
NONE_TEXT = "none of these"
"""The same for people and clients."""


class StoreError(Exception):
    """The store cannot be used. The message is a sentence for people."""


class Stored(NamedTuple):
    """A prediction in the store.

    Attributes:
        request_id: of the request.
        position: index of the image in the request, from 0.
        time: Unix time of the prediction.
        model: name of the model.
        version: of the model.
        predicted: the most probable class.
        confidence: its probability.
        label: the right class; `NONE` if it is none of the classes; None if it is not known.
        image: the uploaded file; None if it was not stored.
        reused: whether there was another prediction with the same request ID and position later.
    """

    request_id: str
    position: int
    time: float
    model: str
    version: str
    predicted: str
    confidence: float
    label: str | None = None
    image: bytes | None = None
    reused: bool = False


class Limits(NamedTuple):
    """How much is kept. The oldest predictions are removed first.

    Attributes:
        rows: number of predictions.
        size: bytes.
        seconds: age.
    """

    rows: int
    size: int
    seconds: float


class Store:
    """An open store.

    Args:
        path: of the file. The file is created if it does not exist, readable by its owner only.
        create: whether it may be created.

    Raises:
        StoreError: the file cannot be opened or is no store.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        try:
            if create:
                # Only a new file: to close one that this process has open elsewhere would release SQLite's locks on it.
                with suppress(FileExistsError):
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            elif not path.is_file():
                raise StoreError(f"there is no feedback store {path}: name the file in TENFOLD_FEEDBACK")
            self._database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT / 1000, isolation_level=None)
        except OSError as error:
            raise StoreError(f"the feedback store {path} cannot be opened ({error.strerror})") from error
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._inode = path.stat().st_ino
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def exists(self) -> bool:
        """Whether the path still is this file. A user may have removed or replaced it."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, predictions: Iterable[Stored]) -> None:
        """Add predictions.

        Clients may choose request IDs. The first prediction of an ID and position is kept, with its label. A later one
        is not stored. If it differs, the first one is marked as `reused`, because a label may be for either of them. It
        does not differ if a client sends a request again.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._writing() as database:
            database.executemany(_ADD, predictions)

    def find(self, request_id: str, position: int) -> Stored | None:
        """The prediction for an image of a request, without the image.

        Raises:
            StoreError: the file cannot be read.
        """
        query = (
            "SELECT request_id, position, time, model, version, predicted, confidence, label, NULL, reused "
            "FROM predictions WHERE (request_id, position) = (?, ?)"
        )
        try:
            found = self._database.execute(query, (request_id, position))
            row = found.fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return _stored(row) if row else None

    def set_label(self, request_id: str, position: int, label: str | None) -> bool:
        """Set the right label of an image, or remove it.

        Returns:
            Whether the image had no label before.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._writing() as database:
            place = (request_id, position)
            first = database.execute(
                "UPDATE predictions SET label = ? WHERE (request_id, position) = (?, ?) AND label IS NULL",
                (label, *place),
            )
            if first.rowcount:
                return True
            database.execute("UPDATE predictions SET label = ? WHERE (request_id, position) = (?, ?)", (label, *place))
            return False

    def labelled(self) -> Iterator[Stored]:
        """The predictions with a label, the oldest first.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            rows = self._database.execute(
                f"SELECT {_COLUMNS} FROM predictions WHERE label IS NOT NULL ORDER BY number"  # noqa: S608
            )
            for row in rows:
                yield _stored(row)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def remove(self, request_ids: Iterable[str] | None = None) -> int:
        """Remove the predictions of some requests, or all, and return the disk space.

        The removed content is overwritten.

        Args:
            request_ids: of the requests; all if not given.

        Returns:
            How many predictions were removed.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._writing() as database:
            if request_ids is None:
                removed = database.execute("DELETE FROM predictions").rowcount
            else:
                delete = "DELETE FROM predictions WHERE request_id = ?"
                removed = sum(database.execute(delete, (each,)).rowcount for each in request_ids)
        try:
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return removed

    def prune(self, limits: Limits) -> None:
        """Remove the oldest predictions until all limits hold.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._writing() as database:
            oldest = time.time() - limits.seconds
            database.execute("DELETE FROM predictions WHERE time < ?", (oldest,))
            (rows,) = database.execute("SELECT COUNT(*) FROM predictions").fetchone()
            if rows > limits.rows:
                database.execute(
                    "DELETE FROM predictions WHERE number IN (SELECT number FROM predictions ORDER BY number LIMIT ?)",
                    (rows - limits.rows,),
                )
            excess = self.size() - limits.size
            last, freed = None, 0
            if excess > 0:
                for number, length in database.execute(
                    "SELECT number, COALESCE(LENGTH(image), 0) FROM predictions ORDER BY number"
                ):
                    last, freed = number, freed + length + _ROW_BYTES
                    if freed >= excess:
                        break
            if last is not None:
                database.execute("DELETE FROM predictions WHERE number <= ?", (last,))

    def size(self) -> int:
        """Bytes of the file that are in use. The space of removed predictions is used again.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            pages, free, size = (
                self._database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        used: int = (pages - free) * size
        return used

    def _prepare(self) -> None:
        """Make an empty file a store.

        Raises:
            StoreError: the file is of another kind, which is not changed.
        """
        database = self._database
        try:
            is_new = self._is_new()
            self._use_write_ahead_log()
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA secure_delete = ON")  # removed images are overwritten
            database.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if not is_new:
            self._add_reused()
            return
        with self._writing():
            if not self._is_new():  # another process was faster
                return
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _add_reused(self) -> None:
        """Add the column `reused` to a file that was made before there was one."""
        find = "SELECT COUNT(*) FROM pragma_table_info('predictions') WHERE name = 'reused'"
        try:
            (found,) = self._database.execute(find).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if found:
            return
        with self._writing() as database:
            if database.execute(find).fetchone() == (0,):  # another process may have been faster
                database.execute("ALTER TABLE predictions ADD COLUMN reused INTEGER NOT NULL DEFAULT 0")

    def _use_write_ahead_log(self) -> None:
        """Change the journal, so that readers and a writer do not wait for each other.

        SQLite does not wait if another process changes it at the same time.
        """
        ends = time.monotonic() + _BUSY_TIMEOUT / 1000
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                    raise
                time.sleep(0.01)

    def _is_new(self) -> bool:
        """Whether the file is empty.

        Raises:
            StoreError: it is of another kind.
        """
        self._database.execute("SAVEPOINT reading")  # all values are of one state, also while another process writes
        found = [
            self._database.execute(query).fetchone()[0]
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT COUNT(*) FROM sqlite_master")
        ]
        self._database.execute("RELEASE reading")
        if found[:2] == [_APPLICATION_ID, _SCHEMA_VERSION]:
            return False
        if found != [0, 0, 0]:
            raise StoreError(f"{self.path} is not a feedback store of this version: name another file")
        return True

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is committed at the end, or rolled back after an error."""
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"the feedback store {self.path} cannot be used ({error})")


def _stored(row: Sequence[Any]) -> Stored:
    """A prediction from its columns."""
    *values, reused = row
    return Stored._make([*values, bool(reused)])
