import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.errors import DataError
from model.training.data import DataSet, folder_of, load, load_cifar10_test, load_for
from model.training.recipes import recipe_named


@pytest.fixture(scope="module")
def cifar10(cifar10_root: Path) -> DataSet:
    return load("cifar10", cifar10_root, holdout=5000)


def keys(pixels: torch.Tensor) -> list[bytes]:
    """The bytes of each image."""
    return [image.numpy().tobytes() for image in pixels]


def test_the_error_for_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    for read in (lambda: load("cifar10", tmp_path, holdout=0), lambda: load_cifar10_test(tmp_path)):
        with pytest.raises(DataError, match=r"unpack cifar-10-python\.tar\.gz there, let .* --download .* --data f"):
            read()


def test_a_folder_of_images_needs_its_path() -> None:
    for data in ("folder:", "data"):
        with pytest.raises(DataError, match="--data folder:PATH"):
            load_for(replace(recipe_named("smoke"), data="folder"), data)
    with pytest.raises(DataError, match="the home folder in --data folder:~nobody-here/a does not exist"):
        folder_of("folder:~nobody-here/a")
    assert folder_of("folder:a/b c") == Path("a/b c")
    assert folder_of("data") is None


def test_one_flipped_bit_of_the_data_is_detected(cifar10_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = bytearray((cifar10_root / folder.name / "test_batch").read_bytes())
    data[20_000_000] ^= 1
    (folder / "test_batch").write_bytes(data)
    with pytest.raises(DataError, match=r"test_batch is damaged .*: delete .* and download it again"):
        load_cifar10_test(tmp_path)


def test_a_foreign_file_is_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cbuiltins\nexit\n(I3\ntR.")  # ends the process if it is unpickled
    with pytest.raises(DataError, match="data_batch_1 is damaged"):
        load("cifar10", tmp_path, holdout=0)


def test_all_of_cifar10_is_read(cifar10: DataSet) -> None:
    assert (len(cifar10.train), len(cifar10.holdout), len(cifar10.test)) == (45_000, 5_000, 10_000)
    assert cifar10.holdout.labels.bincount().tolist() == [500] * 10
    assert cifar10.train.labels.bincount().tolist() == [4500] * 10
    # Every run on every machine holds out the same images, because decisions were based on them.
    held = hashlib.sha256(cifar10.holdout.pixels.numpy().tobytes()).hexdigest()
    assert held == "0ab1c60b7d67984bb97e184fbdfef976e7bae55fcc732bbbb7cd1e876f1c60de"


def test_the_archive_is_read_as_torchvision_reads_it(cifar10: DataSet, cifar10_root: Path) -> None:
    from torchvision.datasets import CIFAR10

    theirs = CIFAR10(cifar10_root, train=False)
    assert dict(cifar10.md5) == dict(CIFAR10.train_list + CIFAR10.test_list)
    assert cifar10.labels == tuple(theirs.classes)
    ours = load_cifar10_test(cifar10_root)
    for images in (ours, cifar10.test):
        assert (images.pixels.numpy() == theirs.data).all()
        assert images.labels.tolist() == theirs.targets


def test_the_holdout_is_even_disjoint_and_the_same_every_time() -> None:
    data = load("synthetic", Path(), holdout=50)
    again = load("synthetic", Path(), holdout=50)
    assert torch.equal(data.holdout.pixels, again.holdout.pixels)
    assert data.holdout.labels.bincount().tolist() == [5] * 10
    train, held, test = set(keys(data.train.pixels)), set(keys(data.holdout.pixels)), set(keys(data.test.pixels))
    assert (len(train), len(held), len(test)) == (350, 50, 100)
    assert not train & held
    assert not (train | held) & test


@pytest.mark.parametrize("holdout", [5, 391, 400, 5000])
def test_a_holdout_must_leave_images_of_each_class_in_both_parts(holdout: int) -> None:
    with pytest.raises(
        DataError, match=f"holdout={holdout} is not possible with 10 classes of 40 images: give 0, or 1"
    ):
        load("synthetic", Path(), holdout=holdout)


def test_without_a_holdout_all_images_are_for_training() -> None:
    data = load("synthetic", Path(), holdout=0)
    assert (len(data.train), len(data.holdout)) == (400, 0)


def test_a_limit_shortens_every_part() -> None:
    data = load("synthetic", Path(), holdout=50, limit=7)
    whole = load("synthetic", Path(), holdout=50)
    assert (len(data.train), len(data.holdout), len(data.test)) == (7, 7, 7)
    assert torch.equal(data.train.pixels, whole.train.pixels[:7])
    assert len(load("synthetic", Path(), holdout=50, limit=60).holdout) == 50


def test_a_folder_that_exists_is_not_downloaded_over(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="missing: cifar-10-batches-py/data_batch_1"):
        load("cifar10", tmp_path, holdout=0, download=True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
