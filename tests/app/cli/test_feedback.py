"""tenfold feedback."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.main import app
from app.feedback.store import NONE, Store
from tests.app.fakes import image_file
from tests.app.feedback.test_export import stored


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store(tmp_path / "store") as store:
        store.add([stored("a", "cat", image_file()), stored("b", "dog", None), stored("c", None, image_file())])
    return tmp_path / "store"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["feedback", *map(str, arguments)])


def test_export_reports_what_it_wrote(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    result = invoke("export", path, folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"{folder} has 1 image, and labels.csv of 2 labelled predictions\n"
        "the service stores images with TENFOLD_FEEDBACK_IMAGES=1\n"
    )


def test_export_reports_the_images_of_none_of_the_classes(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        store.add([stored("a", NONE, image_file())])
    result = invoke("export", tmp_path / "store", tmp_path / "images")
    assert result.stdout.splitlines() == [
        f"{tmp_path}/images has 0 images, and labels.csv of 1 labelled prediction",
        f"{tmp_path}/images-none has 1 image of none of the classes",
    ]


def test_mistakes_are_one_sentence(path: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("some notes\n" * 1000)
    for arguments, message in (
        (("export", tmp_path / "missing", tmp_path / "images"), "there is no feedback store"),
        (("export", tmp_path / "notes", tmp_path / "images"), "file is not a database"),
        (("export", path, tmp_path), "exists and is not an empty folder"),
        (("delete", tmp_path / "missing", "--all"), "there is no feedback store"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "images").exists()


def test_delete_removes_some_or_all(path: Path) -> None:
    assert invoke("delete", path).exit_code == 2
    assert invoke("delete", path, "a", "--all").exit_code == 2
    assert invoke("delete", path, "a", "nothing").stdout == "deleted 1 prediction\n"
    with Store(path) as store:
        assert [row.request_id for row in store.labelled()] == ["b"]
    assert invoke("delete", path, "--all").stdout == "deleted 2 predictions\n"
