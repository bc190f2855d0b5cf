"""Progress of a training run, for a terminal or a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.training.recipes import Recipe

_SECONDS_BETWEEN_LINES = 30.0


class NoProgress:
    """Ignores every event."""

    def begin(self, done: float) -> None: ...

    def step(self, *, epoch: int, loss: float | None, lr: float, images: int, done: float) -> None: ...

    def epoch(self, record: dict[str, float]) -> None: ...


class LineProgress:
    """Prints plain lines: one every 30 seconds, and one after each epoch."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def begin(self, done: float) -> None:
        self.done_before = self.done = done
        self.images = 0
        self.began = self.printed = time.monotonic()

    def step(self, *, epoch: int, loss: float | None, lr: float, images: int, done: float) -> None:
        self.images += images
        self.done = done
        if time.monotonic() - self.printed >= _SECONDS_BETWEEN_LINES:
            self.printed = time.monotonic()
            print(
                f"{done:.1%}, epoch {epoch}/{self.recipe.epochs}, lr {lr:.4f}, {_loss(loss)}, {self._pace()}",
                flush=True,
            )

    def epoch(self, record: dict[str, float]) -> None:
        print(f"{epoch_line(record, self.recipe)}, {self._pace()}", flush=True)

    def _pace(self) -> str:
        """The images per second and the remaining time, evaluations included."""
        seconds = time.monotonic() - self.began
        left = seconds / (self.done - self.done_before) * (1 - self.done)
        return f"{self.images / seconds:.0f} images/s, {f'{left / 60:.0f} min' if left >= 60 else f'{left:.0f} s'} left"


class BarProgress:
    """Shows a bar with rate, loss and remaining time."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self.recipe = recipe
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(recipe.epochs)),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def begin(self, done: float) -> None:
        epoch = min(int(done * self.recipe.epochs) + 1, self.recipe.epochs)
        self.task = self.progress.add_task("", total=1.0, epoch=epoch, state="")
        self.progress.update(self.task, completed=done)
        self.images, self.began = 0, time.monotonic()

    def step(self, *, epoch: int, loss: float | None, lr: float, images: int, done: float) -> None:
        self.images += images
        rate = self.images / (time.monotonic() - self.began)
        state = f"lr {lr:.4f}  {_loss(loss)}  {rate:.0f} images/s"
        self.progress.update(self.task, completed=done, epoch=epoch, state=state)

    def epoch(self, record: dict[str, float]) -> None:
        self.progress.console.print(epoch_line(record, self.recipe), highlight=False)


def _loss(loss: float | None) -> str:
    """The loss of a step. On a GPU it is not known before the next step whose loss is read."""
    return "loss -" if loss is None else f"loss {loss:.4f}"


def epoch_line(record: dict[str, float], recipe: Recipe) -> str:
    """One line about a finished epoch: its number, the training loss and the watched accuracy."""
    accuracy = f", {recipe.watch} accuracy {record['accuracy']:.2%}" if "accuracy" in record else ""
    return (
        f"epoch {record['epoch']}/{recipe.epochs}, loss {record['train_loss']:.4f}{accuracy}, "
        f"{record['side']} px, {record['seconds']:.0f} s"
    )


@contextmanager
def image_bar(*, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr if that is a terminal. Yields a function that takes the images done and their total."""
    console = Console(stderr=True)
    with Progress(console=console, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task("images")
        yield lambda done, total: bar.update(task, completed=done, total=total)
