"""Fixtures of the tests of both app and model."""

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

import model
from model.card import InputSpec
from model.engines.base import Outputs
from model.nets.zoo import build
from model.training import data as datasets
from model.training.exchange import add_onnx
from model.training.export import export
from model.training.loop import Run, describe, train
from model.training.overrides import changed
from model.training.quantize import Choice, add_openvino
from model.training.recipes import CIFAR10_MEAN, CIFAR10_STD, Recipe, recipe_named
from model.training.run import train_bundle
from tests.model.training.data.images import write_classes

CPU = torch.device("cpu")

# Examples have no time limit, because the machine may be busy, and are the same in each run.
hypothesis.settings.register_profile("tenfold", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tenfold")


def maps_of(answer: Outputs | model.Prediction) -> NDArray[np.float32]:
    """The class-activation maps of a network that has them."""
    assert answer.maps is not None
    return answer.maps


class Silent:
    """An observer of training that ignores every event."""

    def begin(self, done: float) -> None: ...

    def step(self, *, epoch: int, loss: float | None, lr: float, images: int, done: float) -> None: ...

    def epoch(self, record: dict[str, float]) -> None: ...


@pytest.fixture(scope="session")
def spec() -> InputSpec:
    """The test transform of the shipped weights."""
    return InputSpec(resize=32, crop=32, interpolation="bilinear", mean=CIFAR10_MEAN, std=CIFAR10_STD)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a narrow ResNet-18 with random weights. Tests must not change it."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    recipe = recipe_named("smoke").with_network("resnet18", width=8)
    data = datasets.load("synthetic", Path(), holdout=recipe.holdout, limit=40)
    torch.manual_seed(0)
    net = build(recipe.network, **recipe.network_arguments(len(data.labels)))
    history = [{"epoch": 1, "side": 32, "lr": 0.1, "train_loss": 2.5, "loss": 2.4, "accuracy": 0.1, "seconds": 1.0}]
    run = Run(recipe, net, history, seconds=1.0, about=describe(CPU, seed=0))
    export(run, data, folder, name="tiny", device="cpu")
    return folder


@pytest.fixture(scope="session")
def tiny_classifier(tiny_bundle: Path) -> model.Classifier:
    return model.load(tiny_bundle, device="cpu")


@pytest.fixture(scope="session")
def int8_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an OpenVINO model in int8. Tests must not change it."""
    return _with_openvino(tiny_bundle, tmp_path_factory.mktemp("int8") / "tiny", "int8")


@pytest.fixture(scope="session")
def float16_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an OpenVINO model in float16. Tests must not change it."""
    return _with_openvino(tiny_bundle, tmp_path_factory.mktemp("float16") / "tiny", "float16")


@pytest.fixture(scope="session")
def onnx_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an ONNX model. Tests must not change it."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("onnx") / "tiny")
    add_onnx(folder)
    return folder


def _with_openvino(bundle: Path, folder: Path, weights: Choice) -> Path:
    shutil.copytree(bundle, folder)
    data = datasets.load("synthetic", Path(), holdout=recipe_named("smoke").holdout)
    add_openvino(folder, data, weights=weights)
    return folder


@pytest.fixture(scope="session")
def article_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the article's recipe after two steps on synthetic images: 256 -> 224 pixels, 27 GMAC per image."""
    recipe = replace(recipe_named("article").lasting(1), data="synthetic", batch_size=2)
    return _trained(recipe, tmp_path_factory.mktemp("article") / "resnet18-article", limit=4)


@pytest.fixture(scope="session")
def bottleneck_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a ResNet-50 with the ImageNet stem after two steps: bottleneck blocks, 256 -> 224 pixels."""
    article = recipe_named("article").lasting(1).with_network("resnet50", stem="imagenet", conv_bias=False)
    recipe = replace(article, data="synthetic", batch_size=2)
    return _trained(recipe, tmp_path_factory.mktemp("bottleneck") / "resnet50-imagenet-stem", limit=4)


@pytest.fixture(scope="session")
def folder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two classes of images in the folder `images` beside it, after one epoch. Tests must not change it."""
    place = tmp_path_factory.mktemp("folder")
    images = write_classes(place / "images", ["bunte Kühe", "猫 | cat"], 30)
    recipe = changed(recipe_named("smoke").lasting(1), ["sizes=[]", "balance=1"])
    out = place / "resnet18-images"
    train_bundle(recipe, data=f"folder:{images}", run=place / "run", out=out, device="cpu", cache=place / "cache")
    return out


def _trained(recipe: Recipe, folder: Path, *, limit: int) -> Path:
    data = datasets.load(recipe.data, Path(), holdout=recipe.holdout, limit=limit)
    run = train(recipe, data, device=CPU, seed=0, folder=folder.parent / "run", observer=Silent())
    export(run, data, folder, name=folder.name, device="cpu")
    return folder


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """Folder of the CIFAR-10 files. A test that needs them is skipped without them."""
    root = Path(os.environ.get("CIFAR10_ROOT", "data"))
    if not (root / "cifar-10-batches-py" / "test_batch").is_file():
        pytest.skip(f"no CIFAR-10 in {root}: set CIFAR10_ROOT to the folder that holds cifar-10-batches-py")
    return root


@pytest.fixture(scope="session")
def cat_jpeg() -> bytes:
    """A photograph of a cat as JPEG, 451 x 300 pixels."""
    return _encoded("JPEG")


@pytest.fixture(scope="session")
def cat_png() -> bytes:
    """The same photograph as PNG."""
    return _encoded("PNG")


def _encoded(file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.chelsea()).save(buffer, file_format)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
