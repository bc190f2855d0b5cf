import hashlib
from collections import Counter

import pytest

from model.errors import DataError
from model.training.data.listing import ListedFile, Listing
from model.training.data.sets import Part
from model.training.data.split import HashedFile, Split, content_hash, split

LABELS = ("a", "b")


def image(path: str, label: int = 0, part: Part = "train", content: str = "") -> HashedFile:
    file = ListedFile(path, label, part, 1, 1)
    return HashedFile(file, hashlib.sha256((content or path).encode()).hexdigest())


def many(count: int) -> list[HashedFile]:
    return [image(f"{label}/{index}", number) for number, label in enumerate(LABELS) for index in range(count)]


def splitted(files: list[HashedFile], parts: tuple[Part, ...] = (), holdout: float = 0.1, test: float = 0.15) -> Split:
    return split(Listing(LABELS, [each.file for each in files], parts), files, holdout=holdout, test=test)


def parts_of(found: Split) -> dict[str, Part]:
    return {each.file.path: part for part, files in found.parts.items() for each in files}


def test_the_shares_are_about_those_requested() -> None:
    found = splitted(many(2000))
    for part, share in {"train": 0.75, "holdout": 0.1, "test": 0.15}.items():
        counts = Counter(each.file.label for each in found.parts[part])  # type: ignore[index]
        assert all(abs(count / 2000 - share) < 0.03 for count in counts.values()), part


def test_an_image_stays_in_its_part_when_others_are_added() -> None:
    before, after = parts_of(splitted(many(200))), parts_of(splitted(many(400)))
    assert len(before) == 400
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("count", range(3, 12))
def test_every_part_has_images_of_every_class(count: int) -> None:
    found = splitted(many(count))
    for files in found.parts.values():
        assert {each.file.label for each in files} == {0, 1}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="the class b has 2 different images for training, and at least 3 are needed"):
        splitted([*many(3)[:3], image("b/0", 1), image("b/1", 1), image("b/2", 1, content="b/1")])
    found = splitted([*many(2)], holdout=0)
    assert found.parts["holdout"] == []
    assert {each.file.label for each in found.parts["test"]} == {0, 1}


def test_shares_must_leave_images_for_training() -> None:
    with pytest.raises(DataError, match=r"test_share=0.15 and holdout_share=0.9 leave no images for training: set"):
        splitted(many(50), holdout=0.9)
    assert splitted([*many(50), image("test/a", 0, "test"), image("test/b", 1, "test")], ("train", "test"), holdout=0.9)


def test_all_images_are_for_the_test_whatever_their_part() -> None:
    found = splitted(
        [*many(1), image("val/a", 0, "holdout"), image("c", content="val/a")], ("train", "holdout"), test=1
    )
    assert {part: len(files) for part, files in found.parts.items()} == {"train": 0, "holdout": 0, "test": 3}
    assert found.leaked == []
    assert found.repeated == [("c", "val/a")]


def test_given_parts_are_kept_and_the_rest_is_held_out_by_hash() -> None:
    test = [image(f"test/{each.file.path}", each.file.label, "test") for each in many(5)]
    found = splitted([*many(100), *test], ("train", "test"))
    assert {each.file.path for each in found.parts["test"]} == {each.file.path for each in test}
    assert 0 < len(found.parts["holdout"]) < 50
    held = [image(f"val/{each.file.path}", each.file.label, "holdout") for each in many(5)]
    found = splitted([*many(100), *test, *held], ("train", "holdout", "test"))
    assert [len(found.parts[part]) for part in ("train", "holdout", "test")] == [200, 10, 10]


def test_an_image_of_two_parts_stays_in_the_test() -> None:
    files = [
        *many(10),
        image("train/same", 0, content="s"),
        image("test/same", 0, "test", content="s"),
        image("test/b", 1, "test"),
    ]
    found = splitted(files, ("train", "test"))
    assert found.leaked == [("train/same", "test/same")]
    assert parts_of(found)["test/same"] == "test"
    assert "train/same" not in parts_of(found)


def test_a_repeated_image_counts_once_and_one_of_two_classes_is_reported() -> None:
    found = splitted([*many(10), image("a/copy", 0, content="a/3"), image("b/copy", 1, content="a/4")])
    assert found.repeated == [("a/copy", "a/3")]
    assert found.ambiguous == [("b/copy", "a/4")]
    parts = parts_of(found)
    assert "a/copy" not in parts
    assert parts["b/copy"] == parts["a/4"], "never in two parts"


def test_the_hash_is_of_contents_and_not_of_names() -> None:
    files = many(10)
    renamed = [HashedFile(image(f"x{each.file.path}", each.file.label).file, each.sha256) for each in files]
    first, other = (content_hash(splitted(each).parts, LABELS) for each in (files, renamed))
    assert first == other
    assert content_hash(splitted([*files, image("a/new")]).parts, LABELS) != first
