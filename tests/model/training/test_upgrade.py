import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import model
from model.card import ClassMeanCosine, Mixture, ModelCard, OutOfDistribution, Thresholds, read_card
from model.commands.upgrade import main
from model.errors import CardError, IntegrityError, ModelError
from model.training.export import expected_of
from model.training.report.readme import readme
from model.training.upgrade import upgrade
from tests.model.commands.inprocess import invoke

README_4 = """---
tags: [resnet18, safetensors]
---

# tiny

The surest mistakes, by number in the test set:

| picture | is | taken for | probability |
|---|---|---|---|
| 24 | cat | frog | 99.9% |
| 5 | ship | airplane | 98.6% |

| kind | AUROC | accepted | share |
|---|---|---|---|
| 1 | tiles | 2 views | 50.3% |

## The recipe in full

```json
{
  "name": "smoke"
}
```
"""

NOTES = "## What was tried\n\nAnother rate:\n\n```\nlr 0.2\n```\n"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def expected(tiny_classifier: model.Classifier) -> ModelCard:
    """The card of the tiny bundle with the score that format 4 had."""
    card = tiny_classifier.card
    mixture = card.out_of_distribution.score
    assert isinstance(mixture, Mixture)
    cosine = ClassMeanCosine(
        method="class-mean-cosine", feature_mean=mixture.feature_mean, class_directions=mixture.class_directions
    )
    spec = OutOfDistribution(
        score=cosine,
        quantiles=[-1.0, 0.0, 1.0],
        least_contrast=0.0,
        least_coarseness=0.0,
        thresholds=Thresholds(accepted=0.05, uncertain=0.02),
        views=1,
        pictures=card.out_of_distribution.pictures,
    )
    self_test = expected_of(tiny_classifier.engine, card.input.crop, card.calibration, spec)
    metrics = card.metrics.model_copy(update={"other": {}})
    return card.model_copy(update={"out_of_distribution": spec, "self_test": self_test, "metrics": metrics})


@pytest.fixture
def format_4(tiny_bundle: Path, expected: ModelCard, tmp_path: Path) -> Path:
    """A bundle as format 4 had it."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    (folder / "card.json").write_text(expected.model_dump_json())
    alter(folder, to_format_4)
    (folder / "README.md").write_text(README_4 + "\n" + NOTES)
    return folder


def alter(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def to_format_4(card: dict[str, Any]) -> None:
    card["format_version"] = 4
    del card["calibration"]["views"], card["metrics"]["mistakes"], card["metrics"]["other"]
    new = card["out_of_distribution"]
    card["out_of_distribution"] = {
        **new["score"],
        **{name: new[name] for name in ("quantiles", "pictures")},
        "threshold": new["thresholds"]["accepted"],
    }


def test_the_weights_and_the_predictions_stay_the_same(
    format_4: Path, expected: ModelCard, tiny_classifier: model.Classifier
) -> None:
    with pytest.raises(CardError, match=r"has format 4: convert it with python -m model\.upgrade"):
        model.load(format_4)
    before = contents(format_4)
    assert upgrade(format_4)
    after = contents(format_4)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"card.json", "README.md", "NOTES.md"}
    classifier = model.load(format_4, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    (found,), (before_upgrade,) = classifier.classify([image]), tiny_classifier.classify([image])
    np.testing.assert_allclose(found.probabilities, before_upgrade.probabilities, atol=0.01)
    metrics = expected.metrics.model_copy(update={"mistakes": classifier.card.metrics.mistakes})
    assert classifier.card == expected.model_copy(update={"metrics": metrics})


def test_the_mistakes_are_read_from_the_old_readme(format_4: Path) -> None:
    upgrade(format_4)
    assert [tuple(mistake.model_dump().values()) for mistake in read_card(format_4 / "card.json").metrics.mistakes] == [
        (24, None, "cat", "frog", 0.999),
        (5, None, "ship", "airplane", 0.986),
    ]


def test_the_readme_is_generated_and_the_handwritten_sections_become_notes(format_4: Path) -> None:
    upgrade(format_4)
    assert (format_4 / "README.md").read_text() == readme(
        read_card(format_4 / "card.json"), notes=True, folder=format_4
    )
    assert (format_4 / "NOTES.md").read_text() == f"# Notes on tiny\n\n{NOTES}"


@pytest.mark.parametrize("text", [None, README_4])
def test_without_handwritten_sections_there_are_no_notes(text: str | None, format_4: Path) -> None:
    (format_4 / "README.md").unlink()
    if text is not None:
        (format_4 / "README.md").write_text(text)
    upgrade(format_4)
    assert "NOTES.md" not in contents(format_4)
    assert len(read_card(format_4 / "card.json").metrics.mistakes) == (0 if text is None else 2)


def test_existing_notes_are_not_overwritten(format_4: Path) -> None:
    (format_4 / "NOTES.md").write_text("mine")
    upgrade(format_4)
    assert (format_4 / "NOTES.md").read_text() == "mine"
    assert "[notes](NOTES.md)" in (format_4 / "README.md").read_text()


def test_in_the_current_format_only_the_readme_is_generated_again(format_4: Path) -> None:
    upgrade(format_4)
    before = contents(format_4)
    (format_4 / "README.md").write_text("old")
    assert not upgrade(format_4)
    assert contents(format_4) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda card: card.update(format_version=3), CardError, "format_version: Input should be 5"),
        (lambda card: card.update(colour="red"), CardError, "is not a valid card of format 4"),
        (lambda card: card.pop("calibration"), CardError, "is not a valid card of format 4"),
        (lambda card: card["files"].update({"model.safetensors": "0" * 64}), IntegrityError, "SHA-256"),
    ],
)
def test_an_invalid_bundle_is_not_changed(
    change: Callable[[dict[str, Any]], object], error: type[ModelError], message: str, format_4: Path
) -> None:
    alter(format_4, change)
    before = contents(format_4)
    with pytest.raises(error, match=message):
        upgrade(format_4)
    assert contents(format_4) == before


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_card_that_is_no_card_is_an_error(text: str, format_4: Path) -> None:
    (format_4 / "card.json").write_text(text)
    with pytest.raises(CardError, match=r"card\.json: "):
        upgrade(format_4)


def test_the_command_reports_what_it_did(format_4: Path, tmp_path: Path) -> None:
    assert invoke(main, format_4).stdout == f"converted {format_4} to format 5\n"
    assert "has format 5 already" in invoke(main, format_4).stdout
    failed = invoke(main, tmp_path)
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: ")
