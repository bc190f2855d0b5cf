import numpy as np
from rich.console import Console

from model.classifier import Classifier
from model.training.report.summary import class_table


def test_of_many_classes_those_with_the_lowest_accuracy_are_shown(tiny_classifier: Classifier) -> None:
    card = tiny_classifier.card
    confusion = np.diag(np.arange(30))
    confusion[7] = [8] * 30  # one of 30 is right
    many = card.model_copy(
        update={
            "labels": [f"class [{number}]" for number in range(30)],
            "metrics": card.metrics.model_copy(update={"confusion": confusion.tolist()}),
        }
    )
    console = Console(width=100)
    with console.capture() as capture:
        console.print(class_table(many))
    text = capture.get()
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert "the 20 classes with the lowest accuracy" in text
    assert len(rows) == 20
    assert [cell.strip() for cell in rows[0].split("│")[1:5]] == ["class [7]", "3.3%", "0.065", "240"]
    assert "class [0]" not in text, "it has no test images"
