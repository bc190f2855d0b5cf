"""The history of a run as files: history.csv, and an event file of TensorBoard where that is installed."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from model.errors import SaveError, cannot_write

HISTORY_FILE = "history.csv"
EVENTS_FILE = "events.out.tfevents.tenfold"


def write_history(folder: Path, records: Sequence[Mapping[str, float]]) -> None:
    """Write history.csv with one row per epoch, and append the last epoch to the event file.

    Args:
        folder: of the run.
        records: of all epochs so far, as in `loop.Run`; at least one.

    Raises:
        SaveError: the disk is full or the folder cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(records[0]))
    table.writeheader()
    table.writerows(records)
    path = folder / HISTORY_FILE
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")
        partial.replace(path)
        _append_event(folder / EVENTS_FILE, records[-1])
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise SaveError(cannot_write(f"to {folder}", error, "make it writable, then continue with --resume")) from error


def _append_event(path: Path, record: Mapping[str, float]) -> None:
    """Append the values of an epoch to an event file. Closed after each epoch, it is complete whenever a run ends."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        return
    values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items() if name != "epoch"]
    now = time.time()
    new = not path.exists()
    with path.open("ab") as file:
        writer = RecordWriter(file)
        if new:
            writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        event = Event(wall_time=now, step=int(record["epoch"]), summary=Summary(value=values))
        writer.write(event.SerializeToString())
