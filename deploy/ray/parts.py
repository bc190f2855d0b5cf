"""The parts of the input of a bulk classification. Each part has one file of the output.

The same input is divided in the same way every time, so that a run can be continued.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from app.cli.classify.paths import BadPath, FileContent, find_files
from app.cli.classify.results import CommandError

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Part:
    """Images of a folder, or a row group of a Parquet file.

    Attributes:
        number: of the part, from 0.
        paths: of the images; empty for a row group.
        file: the Parquet file.
        row_group: its number in the file.
        column: with the images: bytes, or paths relative to the folder of the file.
    """

    number: int
    paths: Sequence[str] = ()
    file: str = ""
    row_group: int = 0
    column: str = ""

    @property
    def name(self) -> str:
        """The name of the output file."""
        return f"part-{self.number:06}.parquet"

    def images(self) -> Iterator[str | FileContent]:
        """The images, in their order. Those that are bytes are named FILE#ROWGROUP.ROW."""
        yield from self.paths
        if not self.file:
            return
        with pq.ParquetFile(self.file) as file:
            row = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[self.row_group], columns=[self.column]):
                for value in batch.column(0).to_pylist():
                    name = f"{self.file}#{self.row_group}.{row}"
                    if isinstance(value, str):
                        yield str(Path(self.file).parent / value)
                    else:
                        yield FileContent(name, value or b"")
                    row += 1


def divide(source: Path, column: str | None, images: int) -> tuple[list[Part], str]:
    """Divide the input into parts.

    Args:
        source: folder of images, Parquet file, or folder of Parquet files.
        column: of the Parquet files; "image", or else "path", if it is not given.
        images: of a folder in each part. A row group of a Parquet file is always one part.

    Returns:
        The parts, and a SHA-256 of the names, sizes and times of modification of the files.

    Raises:
        CommandError: the input has no images, or a file cannot be used.
    """
    tables = [source] if source.suffix == ".parquet" else sorted(source.glob("*.parquet"))
    if tables:
        return [*_row_groups(tables, column)], _fingerprint(map(str, tables))
    if column is not None:
        raise CommandError(f"{source} has no Parquet files: leave out --column")
    paths = []
    for path in find_files([str(source)]):
        if isinstance(path, BadPath):
            raise CommandError(f"{path.path}: {path.reason}")
        paths.append(path)
    starts = range(0, len(paths), images)
    return [Part(number, paths=paths[start : start + images]) for number, start in enumerate(starts)], _fingerprint(
        paths
    )


def _row_groups(tables: Sequence[Path], column: str | None) -> Iterator[Part]:
    number = 0
    for table in tables:
        try:
            with pq.ParquetFile(table) as file:
                schema, groups = file.schema_arrow, file.num_row_groups
        except (OSError, pa.ArrowInvalid) as error:
            raise CommandError(f"{table} is no Parquet file that can be read: correct INPUT") from error
        wanted = [column] if column else ["image", "path"]
        found = next((name for name in wanted if name in schema.names), None)
        if found is None:
            raise CommandError(
                f"{table} has no column {' or '.join(wanted)}, only {', '.join(schema.names)}: give --column"
            )
        kind = schema.field(found).type
        if not any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string,
                                           pa.types.is_large_string)):  # fmt: skip
            raise CommandError(f"the column {found} of {table} has the type {kind}: give one of binary or string")
        for group in range(groups):
            yield Part(number, file=str(table), row_group=group, column=found)
            number += 1


def _fingerprint(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path) + b"\0")
        with contextlib.suppress(OSError):  # a broken link, which gets a row with an error
            status = Path(path).stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()
