import json
import re
from pathlib import Path

import pytest
import yaml

from model.card import ModelCard, OutlierImages, TeacherBundle, read_card
from model.training.report.readme import readme
from tests.documents import blocks


@pytest.fixture
def card(tiny_bundle: Path) -> ModelCard:
    return read_card(tiny_bundle / "card.json")


def test_the_readme_is_generated_from_the_card_alone(card: ModelCard, tiny_bundle: Path) -> None:
    assert (tiny_bundle / "README.md").read_text() == readme(card, folder=tiny_bundle)


def test_the_commands_name_the_folder_of_the_bundle(card: ModelCard, tmp_path: Path) -> None:
    other = card.model_copy(update={"name": "served"})
    text = readme(other, folder=Path("weights", "my model"))
    assert blocks(text, "sh") == [
        ".venv/bin/tenfold serve --weights 'weights/my model'\n",
        ".venv/bin/tenfold evaluate 'weights/my model' --data data --engine torch\n",
    ]
    assert 'model.load("weights/my model")' in text
    assert "weights/served" in readme(other)
    assert f"--weights {tmp_path}\n" in readme(other, folder=tmp_path)
    assert "--weights weights/mine\n" in readme(other, folder=Path.cwd() / "weights" / "mine")


def test_the_front_matter_is_that_of_a_model_hub(card: ModelCard) -> None:
    _, front, _ = readme(card).split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["pipeline_tag"] == "image-classification"
    assert matter["tags"] == ["resnet18", "safetensors"]
    result = matter["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "synthetic", "type": "synthetic", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": round(card.metrics.top1, 4)}]


def test_the_readme_repeats_the_card(card: ModelCard, tiny_bundle: Path) -> None:
    text = readme(card)
    assert f"**{card.metrics.top1:.2%}** of 40 images" in text
    assert f"{card.complexity.parameters:,} parameters" in text
    assert f"commit `{card.training.commit}`" in text
    recipe = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert recipe is not None
    assert json.loads(recipe[1]) == card.training.recipe
    for plot in re.findall(r"\]\((plots/.*?)\)", text):
        assert (tiny_bundle / plot).is_file()
    for index, label in enumerate(card.labels):
        row = card.metrics.confusion[index]
        assert f"| {label} | {row[index] / sum(row):.1%} |" in text
    assert card.metrics.mistakes
    for mistake in card.metrics.mistakes:
        assert f"| {mistake.image} | {mistake.label} | {mistake.predicted} | {mistake.probability:.1%} |" in text


def test_the_readme_has_the_mean_over_unequal_classes_and_the_f1_scores(card: ModelCard) -> None:
    assert "macro accuracy" not in readme(card), "all classes have four test images"
    confusion = [[0] * 10 for _ in range(10)]
    confusion[0][0], confusion[1][0] = 30, 10
    metrics = card.metrics.model_copy(update={"confusion": confusion, "top1": 0.75})
    text = readme(card.model_copy(update={"metrics": metrics}))
    assert "| macro accuracy, the mean over the classes | **50.00%** |" in text
    assert f"| {card.labels[0]} | 100.0% | 0.857 | 30 |" in text
    assert f"| {card.labels[1]} | 0.0% | 0.000 | 10 |" in text


def test_the_readme_says_that_few_images_were_held_out(card: ModelCard) -> None:
    for images, few in ((40, True), (200, False)):
        calibration = card.calibration.model_copy(update={"pictures": images})
        assert ("**These are few images**" in readme(card.model_copy(update={"calibration": calibration}))) is few


def test_the_readme_names_the_changed_fields_of_the_recipe(card: ModelCard) -> None:
    assert "| recipe | `smoke`, " in readme(card)
    recipe = {**card.training.recipe, "changed": ["sizes", "lr"], "sizes": [[0, 16]], "lr": 0.3}
    training = card.training.model_copy(update={"recipe": recipe})
    text = readme(card.model_copy(update={"training": training}))
    assert "| recipe | `smoke` with `sizes=[[0, 16]]`, `lr=0.3`, " in text


def test_the_readme_describes_the_outliers(card: ModelCard) -> None:
    assert "| outliers |" not in readme(card)
    outliers = OutlierImages(images=44500, generated=2840, without=["bus", "fox"], unreadable=0, sha256="ab" * 32)
    training = card.training.model_copy(update={"outliers": outliers})
    text = readme(card.model_copy(update={"training": training}))
    expected = "44,500 images and 2,840 generated ones, SHA-256 `abababababab`, without the folders bus, fox"
    assert f"|\n| outliers | {expected} |\n" in text


def test_the_readme_names_the_teacher(card: ModelCard) -> None:
    assert "| teacher |" not in readme(card)
    teacher = TeacherBundle(name="large", sha256="ab" * 32, engine="openvino", precision="int8")
    training = card.training.model_copy(update={"teacher": teacher})
    text = readme(card.model_copy(update={"training": training}))
    assert "|\n| teacher | `large`, weights with SHA-256 `abababababab`, in int8 by openvino |\n" in text


def test_the_readme_describes_the_calibration(card: ModelCard) -> None:
    text = " ".join(readme(card).split())
    metrics = card.metrics
    assert f"{metrics.ece:.2%}, before calibration {metrics.ece_uncalibrated:.2%}" in text
    assert f"a temperature of {card.calibration.temperature}. This minimises" in text
    assert "log-likelihood on 40 held-out images in one view each." in text
    calibration = card.calibration.model_copy(update={"exponent": 0.25})
    other = " ".join(readme(card.model_copy(update={"calibration": calibration})).split())
    assert f"a temperature of {calibration.temperature} times their spread to the power of 0.25. The spread is" in other
    assert "at least 5% of 40 held-out images in one view each do not score higher" in text
    assert f"| test | | {metrics.accepted['test']:.1%} |" in text
    for kind, area in metrics.auroc.items():
        assert f"| {kind} | {area:.3f} | {metrics.accepted[kind]:.1%} |" in text


def test_the_readme_says_for_how_many_views_the_constants_hold(card: ModelCard) -> None:
    calibration = card.calibration.model_copy(update={"views": 2})
    assert "held-out images in 2 views each." in " ".join(
        readme(card.model_copy(update={"calibration": calibration})).split()
    )


def test_a_class_without_images_and_a_card_without_mistakes(card: ModelCard) -> None:
    confusion = [[0] * 10, *card.metrics.confusion[1:]]
    metrics = card.metrics.model_copy(update={"confusion": confusion, "mistakes": []})
    text = readme(card.model_copy(update={"metrics": metrics}))
    assert f"| {card.labels[0]} | | | 0 |" in text
    assert "highest confidence" not in text


def test_the_openvino_model_has_a_section(card: ModelCard, int8_bundle: Path) -> None:
    assert "OpenVINO" not in readme(card)
    about = read_card(int8_bundle / "card.json").openvino
    assert about is not None
    text = readme(card.model_copy(update={"openvino": about}))
    assert f"| same prediction as in float32 | {about.agreement:.2%} of the test images |" in text
    assert "activations have 8 bits" in " ".join(text.split())
    float16 = about.model_copy(update={"weights": "float16", "pictures": 0})
    assert "weights have 16 bits" in " ".join(readme(card.model_copy(update={"openvino": float16})).split())


def test_notes_are_linked(card: ModelCard) -> None:
    assert "NOTES.md" not in readme(card)
    assert "[notes](NOTES.md)" in readme(card, notes=True)
