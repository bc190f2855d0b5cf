"""A folder of images as a data set, and its cache."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.card import InputSpec
from model.errors import DataError, SaveError
from model.image import preprocess
from model.image import test_transform as transform
from model.training.data.folder import load_folder
from model.training.data.sets import DataSet
from tests.limits import files_limited_to
from tests.model.training.data.images import write_classes, write_image

SPEC = InputSpec(resize=20, crop=16, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Reports(list[str]):
    """Lines of text about a folder."""

    def decoded(self) -> bool:
        return any(line.startswith("decoding ") for line in self)


def loaded(root: Path, reports: Reports | None = None, *, spec: InputSpec = SPEC, **options: object) -> DataSet:
    report = [].append if reports is None else reports.append
    defaults = {"holdout": 0.2, "test": 0.2, "cache": root.parent / "cache"}
    return load_folder(root, spec, report=report, **{**defaults, **options})  # type: ignore[arg-type]


def entries(root: Path) -> list[str]:
    """The folders in the cache."""
    return sorted(path.name for path in (root.parent / "cache").iterdir() if path.is_dir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "animals", ["bunte Kühe", "cat"], 20)


def test_the_parts_are_mapped_from_one_file(root: Path) -> None:
    data = loaded(root)
    assert data.labels == ("bunte Kühe", "cat")
    assert data.name == "animals"
    assert len(data.train) + len(data.holdout) + len(data.test) == 40
    for images in (data.train, data.holdout, data.test):
        assert len(images) > 0
        assert images.mapped
        assert images.pixels.shape[1:] == (20, 20, 3)
        assert not images.pixels.numpy().flags.owndata
    assert data.train[:3].mapped
    assert not data.train[torch.tensor([0, 2])].mapped
    assert data.counts("train")[0] + data.counts("holdout")[0] + data.counts("test")[0] == 20


@pytest.mark.parametrize("size", [(20, 20), (21, 20), (33, 20), (50, 37), (16, 90), (7, 5), (300, 212), (601, 60)])
def test_evaluated_pixels_are_those_that_the_service_computes(size: tuple[int, int], tmp_path: Path) -> None:
    for resize, crop in ((20, 16), (21, 16), (20, 20), (24, 17)):
        spec = SPEC.model_copy(update={"resize": resize, "crop": crop})
        root = write_classes(tmp_path / f"{resize}-{crop}", "ab", 5)
        file = write_image(root / "a" / "test.png", 99, size)
        data = loaded(root, spec=spec, holdout=0.0, test=0.9)
        found = {
            transform(Image.fromarray(image), spec).tobytes()
            for part in (data.train, data.test)
            for image in part.pixels.numpy()
        }
        served = preprocess(file.read_bytes(), spec, max_pixels=10**6).pixels[0]
        assert served.tobytes() in found


def test_images_of_any_format_and_mode_are_decoded(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "mixed", "ab", 5)
    for number, (mode, suffix) in enumerate([("L", "jpg"), ("RGBA", "png"), ("P", "gif"), ("RGB", "webp")]):
        Image.new(mode, (50 + number, 40), number + 1).save(root / "a" / f"image.{suffix}")
    assert sum(map(sum, (loaded(root).counts(part) for part in ("train", "holdout", "test")))) == 14


def test_images_are_decoded_once_and_again_after_a_change(root: Path) -> None:
    first, second, third = Reports(), Reports(), Reports()
    before = loaded(root, first)
    again = loaded(root, second)
    assert (first.decoded(), second.decoded()) == (True, False)
    assert torch.equal(before.train.pixels, again.train.pixels)
    assert (before.sha256, list(before.test_files)) == (again.sha256, list(again.test_files))
    write_image(root / "cat" / "new.png", 12345)
    changed = loaded(root, third)
    assert third.decoded()
    assert changed.sha256 != before.sha256
    assert len(entries(root)) == 1, "the new entry replaces the old one"
    assert len(before.train.pixels[0]), "a run that uses the old entry continues"


def test_each_size_has_an_entry_and_another_split_replaces_it(root: Path) -> None:
    loaded(root)
    loaded(root, spec=SPEC.model_copy(update={"resize": 24}))
    assert len(entries(root)) == 2
    reports = Reports()
    loaded(root, reports, test=0.5)
    assert reports.decoded()
    assert len(entries(root)) == 2


def test_a_damaged_entry_is_replaced(root: Path) -> None:
    loaded(root)
    (entry,) = (path for path in (root.parent / "cache").iterdir() if path.is_dir())
    for damage in (lambda: os.truncate(entry / "pixels", 99), lambda: (entry / "index.json").write_text("{")):
        damage()
        reports = Reports()
        assert len(loaded(root, reports).test) > 0
        assert reports.decoded()


def test_unreadable_files_are_listed_and_skipped(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "many", "ab", 100)
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "b" / "cut.png").write_bytes((root / "b" / "000.png").read_bytes()[:-400])
    reports = Reports()
    data = loaded(root, reports)
    assert sum(map(len, (data.train, data.holdout, data.test))) == 200
    assert any(line.startswith("skipped a/notes.txt: this is not an image in an accepted format") for line in reports)
    assert any(line.startswith("skipped b/cut.png: the image is truncated or damaged") for line in reports)
    again = Reports()
    loaded(root, again)
    assert [line for line in again if "skipped" in line] == [line for line in reports if "skipped" in line]


def test_a_pipe_and_a_link_to_nothing_are_skipped_and_not_opened(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "many", "ab", 100)
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "gone.png").symlink_to(tmp_path / "none")
    (root / "notes.txt").touch()
    reports = Reports()
    data = loaded(root, reports)
    assert sum(map(len, (data.train, data.holdout, data.test))) == 200
    assert "skipped a/pipe.png: it is not a regular file" in reports
    assert "skipped b/gone.png: it is a link that leads to nothing" in reports
    assert "1 not used beside the folders of classes: notes.txt" in reports


def test_val_is_held_out_and_the_test_images_are_chosen_from_train(tmp_path: Path) -> None:
    write_classes(tmp_path / "parts" / "train", "ab", 20)
    write_classes(tmp_path / "parts" / "Val", "ab", 5, first=500)
    data = loaded(tmp_path / "parts")
    assert data.counts("holdout") == [5, 5]
    assert [sum(pair) for pair in zip(data.counts("train"), data.counts("test"), strict=True)] == [20, 20]
    assert min(data.counts("test")) > 0


def test_a_table_of_the_files_is_the_same_data_set(root: Path) -> None:
    rows = [f"animals/{path.relative_to(root).as_posix()},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    table = root.parent / "animals.csv"
    table.write_text("\n".join(["file,label", *rows, "animals/cat/000.png,"]))
    reports = Reports()
    ours, theirs = loaded(table, reports), loaded(root)
    assert (ours.sha256, ours.labels, ours.name) == (theirs.sha256, theirs.labels, "animals.csv")
    assert list(ours.test_files) == [f"animals/{path}" for path in theirs.test_files]
    assert torch.equal(ours.test.pixels, theirs.test.pixels)
    assert "1 not used beside the lines with a file and a class: line 42" in reports


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    root = write_classes(tmp_path / os.fsdecode(b"caf\xe9"), "ab", 100)
    for path in root.glob("a/*"):
        path.rename(path.with_name(os.fsdecode(b"\xff\n" + path.name.encode())))
    (root / os.fsdecode(b"notes\xff")).touch()
    shutil.copy(root / "b" / "000.png", root / "b" / os.fsdecode(b"\xfe.png"))
    (root / "a" / os.fsdecode(b"\xfd.png")).write_text("not an image")
    reports = Reports()
    data = loaded(root, reports)
    assert data.name == "caf\\xe9"
    of_a = [path for path in data.test_files if path.startswith("a/")]
    assert of_a
    assert all(path.startswith("a/\\xff\\n") for path in of_a), "as in the file system, but escaped"
    text = "".join([data.name, *data.test_files, *reports])
    assert "\n" not in text
    assert all(name in text.encode().decode() for name in ("caf\\xe9 once", "notes\\xff", "b/\\xfe.png", "a/\\xfd.png"))


def test_more_than_one_percent_unreadable_files_are_an_error(root: Path) -> None:
    (root / "cat" / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match=r"more than 1% of the 41 files in .*animals .*\(cat/notes\.txt: .*\): remove"):
        loaded(root)
    assert entries(root) == []


def test_what_is_doubtful_is_reported(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    write_classes(root / "train", "ab", 20)
    write_classes(root / "test", "ab", 5, first=500)
    shutil.copy(root / "test" / "a" / "001.png", root / "train" / "a" / "leak.png")
    shutil.copy(root / "train" / "a" / "002.png", root / "train" / "a" / "twin.png")
    shutil.copy(root / "train" / "a" / "003.png", root / "train" / "b" / "other.png")
    reports = Reports()
    data = loaded(root, reports)
    text = "\n".join(reports)
    assert (
        "1 file left out of the training or held-out images, because another part has the same content: train/a/"
        in text
    )
    assert "1 file left out, because the class has the same content: train/a/twin.png and train/a/002.png" in text
    assert "1 file kept, although another class has the same content: train/b/other.png and train/a/003.png" in text
    assert data.counts("test") == [5, 5]


def test_the_number_of_images_of_each_class_is_reported(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "many", [f"class {number}" for number in range(30)], 3)
    reports = Reports()
    loaded(root, reports)
    title = next(line for line in reports if "training" in line)
    assert title.startswith("30 classes, the 10 largest and smallest")
    assert reports[-1].split() == ["all", "30", "30", "30"]
    assert len(reports) == 1 + 1 + 20 + 1


def test_the_order_of_labels_is_that_of_the_model(root: Path) -> None:
    ours, theirs = loaded(root), loaded(root, labels=["cat", "bunte Kühe"])
    assert theirs.labels == ("cat", "bunte Kühe")
    assert torch.equal(ours.train.labels, 1 - theirs.train.labels)
    with pytest.raises(DataError, match=r"not those of the model \(missing: dog; unknown: bunte Kühe\)"):
        loaded(root, labels=["cat", "dog"])


def test_a_full_disk_leaves_no_entry(root: Path) -> None:
    with (
        files_limited_to(20_000),
        pytest.raises(SaveError, match=r"cannot write the cache .* \(File too large\): choose"),
    ):
        loaded(root)
    assert entries(root) == []


def test_an_interrupted_command_leaves_no_entry_and_a_killed_one_is_cleaned_up(root: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total * 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loaded(root, progress=interrupt)
    assert entries(root) == []
    loaded(root)
    (name,) = entries(root)
    (root.parent / "cache" / name).rename(root.parent / "cache" / f"{name}.partial")
    assert len(loaded(root).test) > 0
    assert entries(root) == [name]


def test_a_cache_that_cannot_be_written_is_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match=r"cannot write the cache .*: choose another --cache"):
        loaded(root, cache=tmp_path / "file")


def test_pixels_of_a_mapped_file_stay_on_the_cpu(root: Path) -> None:
    moved = loaded(root).train.to(torch.device("meta"))
    assert moved.pixels.device.type == "cpu"
    assert moved.labels.device.type == "meta"
    assert np.shares_memory(moved.pixels.numpy(), moved.pixels[:1].numpy())
