import io
import re

import pytest
from rich.console import Console

from model.training.loop import Observer
from model.training.progress import BarProgress, LineProgress
from model.training.recipes import recipe_named

RECORD = {"epoch": 1, "side": 16, "lr": 0.1, "train_loss": 2.25, "accuracy": 0.125, "seconds": 3.2}
LINE = "epoch 1/8, loss 2.2500, holdout accuracy 12.50%, 16 px, 3 s\n"


def run_one_epoch(observer: Observer) -> None:
    observer.begin(0.0)
    observer.step(epoch=1, loss=2.25, lr=0.1, images=25, done=0.125)
    observer.epoch(RECORD)


def test_a_log_file_gets_one_line_for_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    run_one_epoch(LineProgress(recipe_named("smoke")))
    assert re.fullmatch(re.escape(LINE.rstrip()) + r", \d+ images/s, \d+ s left\n", capsys.readouterr().out)


def test_a_bar_shows_the_epoch_that_is_resumed_and_no_loss_before_it_is_known() -> None:
    screen = io.StringIO()
    bar = BarProgress(recipe_named("smoke"), Console(file=screen, force_terminal=True, width=120))
    with bar.progress:
        bar.begin(0.5)
        bar.progress.refresh()
        first = screen.getvalue()
        bar.step(epoch=5, loss=None, lr=0.1, images=25, done=0.55)
    assert "epoch 5/8" in first
    assert "loss" not in first
    assert "loss -" in screen.getvalue()


def test_a_terminal_gets_a_bar_with_the_loss_and_the_rate() -> None:
    screen = io.StringIO()
    bar = BarProgress(recipe_named("smoke"), Console(file=screen, force_terminal=True, width=120))
    with bar.progress:
        run_one_epoch(bar)
    text = screen.getvalue()
    assert LINE in text
    assert "nan" not in text, "before the first step"
    for part in ("epoch 1/8", "loss 2.2500", "images/s", "12%"):
        assert part in text
