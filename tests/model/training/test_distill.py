from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import model
from model.bundle import open_bundle
from model.card import TeacherBundle, read_card
from model.engines.torch import Precision, TorchEngine, load_network
from model.errors import RecipeError
from model.training.augment import normalise
from model.training.data import CIFAR10_LABELS
from model.training.distill import Teacher, distillation_loss
from model.training.recipes import recipe_named

SMOKE = recipe_named("smoke")


def logits(seed: int) -> torch.Tensor:
    return 4 * torch.randn(20, 10, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_cross_entropy_of_the_softened_probabilities_less_its_minimum(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    target = (teacher / temperature).softmax(1)
    entropy = -(target * target.log()).sum(1)
    cross_entropy = F.cross_entropy(student / temperature, target, reduction="none")
    expected = (cross_entropy - entropy) * temperature**2
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), expected)


def test_the_loss_of_equal_probabilities_is_0() -> None:
    teacher = logits(0)
    torch.testing.assert_close(distillation_loss(teacher + 3, teacher, 3.0), torch.zeros(20), atol=1e-4, rtol=0)


def test_the_size_of_the_gradients_hardly_depends_on_a_high_temperature() -> None:
    sizes = []
    for temperature in (20.0, 80.0):
        student = logits(0).requires_grad_()
        distillation_loss(student, logits(1), temperature).sum().backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_a_teacher_gives_the_logits_of_its_bundle_for_a_normalised_batch(
    tiny_bundle: Path, tiny_classifier: model.Classifier
) -> None:
    # The student's normalisation is another one than the teacher's.
    recipe = replace(SMOKE, mean=(0.2, 0.5, 0.7), std=(0.1, 0.2, 0.3))
    teacher = Teacher.from_bundle(tiny_bundle, recipe=recipe, labels=CIFAR10_LABELS, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    # Each engine chooses its precision by a trial, so that another one may have chosen another.
    precision = cast(Precision, teacher.about.precision)
    engine = TorchEngine(
        load_network(open_bundle(tiny_bundle)), tiny_classifier.card.input, device="cpu", precision=precision
    )
    expected = engine.run(pixels).logits
    found = teacher.logits(normalise(torch.from_numpy(pixels), recipe), recipe)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_teacher_is_known_by_its_weights_and_its_engine(int8_bundle: Path) -> None:
    card = read_card(int8_bundle / "card.json")
    teacher = Teacher.from_bundle(int8_bundle, recipe=SMOKE, labels=CIFAR10_LABELS, device="cpu")
    expected = TeacherBundle(name="tiny", sha256=card.files["model.safetensors"], engine="openvino", precision="int8")
    assert teacher.about == expected


def test_a_bundle_that_does_not_fit_the_recipe_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(RecipeError, match="has other classes than the data: choose a --teacher"):
        Teacher.from_bundle(tiny_bundle, recipe=SMOKE, labels=CIFAR10_LABELS[::-1])
    with pytest.raises(RecipeError, match=r"takes images of 32 x 32 pixels, and the recipe 'article' has 224 x 224"):
        Teacher.from_bundle(tiny_bundle, recipe=recipe_named("article"), labels=CIFAR10_LABELS)
