import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from model.card import OutlierImages
from model.errors import DataError
from model.nets.base import Network
from model.nets.zoo import build
from model.training.outliers import generate_outliers, load_outliers, uniform_cross_entropy, with_folder_classifier
from model.training.recipes import recipe_named
from tests.model.nets.plain import MixedNetwork, PlainCNN


def write(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images in nested folders, and two files that are not images."""
    write(tmp_path / "top.png", (1, 0, 0))
    write(tmp_path / "bus" / "a.png", (2, 0, 0), (64, 48))
    write(tmp_path / "plants" / "rose" / "b.png", (3, 0, 0), (20, 500))
    write(tmp_path / "plants" / "rose" / "c.bmp", (4, 0, 0), (8, 8))
    write(tmp_path / "plants" / "oak" / "d.tif", (5, 0, 0))
    (tmp_path / "README.md").write_text("about these images")
    (tmp_path / "plants" / "cut.png").write_bytes((tmp_path / "top.png").read_bytes()[:40])
    return tmp_path


def reds(pixels: torch.Tensor) -> list[int]:
    assert pixels.dtype == torch.uint8
    return [int(image[16, 16, 0]) for image in pixels]


def test_images_are_read_from_any_layout_and_other_files_are_counted(folder: Path) -> None:
    outliers = load_outliers(folder, side=32)
    assert outliers.pixels.shape == (5, 32, 32, 3)
    assert reds(outliers.pixels) == [2, 5, 3, 4, 1], "in the order of their paths"
    assert len(outliers) == 5
    assert outliers.folders.tolist() == [1, 2, 3, 3, 0]
    assert outliers.about == OutlierImages(
        images=5,
        generated=0,
        without=[],
        unreadable=2,
        sha256=hashlib.sha256(outliers.pixels.numpy().tobytes()).hexdigest(),
    )


def test_links_are_followed_and_what_is_no_regular_file_is_counted(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("links")
    (root / "linked").symlink_to(folder)
    (root / "gone.png").symlink_to(folder / "none")
    os.mkfifo(root / "pipe.png")
    outliers = load_outliers(root, side=32)
    assert reds(outliers.pixels) == [2, 5, 3, 4, 1]
    assert outliers.about.unreadable == 2 + 2


def test_folders_are_left_out_by_name_at_any_depth(folder: Path) -> None:
    outliers = load_outliers(folder, side=32, without=["rose", "bus"])
    assert reds(outliers.pixels) == [5, 1]
    assert outliers.about.without == ["bus", "rose"]
    assert load_outliers(folder, side=32, without=["plants"]).about.unreadable == 1


def test_the_hash_depends_on_the_pixels_and_not_on_the_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = tmp_path_factory.mktemp("other") / "moved"
    before = load_outliers(folder, side=32).about.sha256
    folder.rename(moved)
    assert load_outliers(moved, side=32).about.sha256 == before
    write(moved / "top.png", (200, 0, 0))
    assert load_outliers(moved, side=32).about.sha256 != before


def test_generated_images_make_up_the_given_share(folder: Path) -> None:
    outliers = load_outliers(folder, side=32, generated_share=0.5)
    assert (outliers.about.images, outliers.about.generated, len(outliers)) == (5, 5, 10)
    assert torch.equal(outliers.pixels[5:], generate_outliers(5, 32))
    assert outliers.folders[5:].tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("make", "without", "message"),
    [
        (lambda _: None, (), "missing does not exist: give --outliers a folder"),
        (lambda root: root.mkdir(), (), "contains no readable image"),
        (lambda root: write(root / "a" / "b.png", (0, 0, 0)), ("a",), "contains no readable image"),
        (lambda root: write(root / "a" / "b.png", (0, 0, 0)), ("b.png",), r"contains no folder b\.png: correct"),
    ],
    ids=["no folder", "empty", "all left out", "unknown name"],
)
def test_what_cannot_be_used_is_an_error(
    make: "object", without: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    root = tmp_path / "missing"
    make(root)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        load_outliers(root, side=32, without=without)


@pytest.mark.parametrize("net", [PlainCNN(), MixedNetwork(), build("resnet18", num_classes=10, width=8)])
def test_the_classifier_of_the_folders_leaves_the_logits_of_the_network_alone(net: Network, folder: Path) -> None:
    recipe = replace(recipe_named("smoke"), outlier_folder_weight=0.5)
    both = with_folder_classifier(net, load_outliers(folder, side=32), recipe)
    assert both is not None
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, folders = both.eval()(images).tensor_split([net.num_classes], dim=1)
        torch.testing.assert_close(logits, net(images))
    assert folders.shape == (3, 4)
    assert with_folder_classifier(net, load_outliers(folder, side=32), recipe_named("smoke")) is None


def test_generated_images_are_of_five_kinds_and_the_same_each_time() -> None:
    images = generate_outliers(40, 32)
    assert images.shape == (40, 32, 32, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(images, generate_outliers(40, 32))
    flat, gradients, noise, text, windows = (images[kind::5].numpy().astype(np.int64) for kind in range(5))
    assert (flat == flat[:, :1, :1]).all(), "one colour"
    assert len({tuple(colour) for colour in flat[:, 0, 0].tolist()}) > 5
    assert np.abs(np.diff(gradients, axis=1)).max() < 40, "no edges"
    assert all(image.std() > 1 for image in noise)
    assert all(len(np.unique(image)) > 2 for image in text), "ink, paper and what is between them"
    assert all(len(np.unique(image.reshape(-1, 3), axis=0)) > 5 for image in windows)


@pytest.mark.parametrize("side", [28, 64])
def test_generated_images_are_of_the_given_side(side: int) -> None:
    assert generate_outliers(8, side).shape == (8, side, side, 3)
    assert generate_outliers(0, side).shape == (0, side, side, 3)


def test_the_loss_is_the_cross_entropy_to_the_uniform_distribution() -> None:
    logits = 5 * torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits, torch.full((20, 10), 0.1), reduction="none")
    torch.testing.assert_close(uniform_cross_entropy(logits), expected)
    assert uniform_cross_entropy(torch.full((1, 10), 3.0)).item() == pytest.approx(np.log(10))
