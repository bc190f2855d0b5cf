"""Classification in this process."""

from pathlib import Path

import pytest

from app.cli.classify.local import LocalClassifier
from tests.app.fakes import image_file


@pytest.mark.parametrize(("max_batch", "largest"), [(0, 16), (6, 3)])
def test_files_are_classified_in_batches(int8_bundle: Path, tmp_path: Path, max_batch: int, largest: int) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(image_file())
    settings = {"weights": int8_bundle, "device": "cpu", "threads": 1, "views": 2, "max_batch": max_batch}
    classifier = LocalClassifier(settings, top_k=1)
    sizes = [len(results) for results in classifier.classify([str(path)] * 200)]
    assert sum(sizes) == 200
    assert 1 < max(sizes) <= largest
