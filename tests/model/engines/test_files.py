"""What happens to the files of a bundle after it was loaded concerns no engine."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import model
from model.card import ONNX_FILE, OPENVINO_FILES, WEIGHTS_FILE
from tests.shipped import SHIPPED


@pytest.mark.parametrize(
    ("engine", "bundle", "files"),
    [
        ("torch", "tiny_bundle", (WEIGHTS_FILE,)),
        ("openvino", "shipped", OPENVINO_FILES),  # OpenVINO copies the weights of a narrow network
        ("onnx", "onnx_bundle", (ONNX_FILE,)),
    ],
)
def test_files_that_are_overwritten_in_place_do_not_change_the_outputs(
    engine: model.EngineName, bundle: str, files: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = SHIPPED[0] if bundle == "shipped" else request.getfixturevalue(bundle)
    folder = shutil.copytree(source, tmp_path / "copy")
    classifier = model.load(folder, engine=engine, device="cpu", threads=1)
    pixels = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    before = classifier.engine.run(pixels).logits.copy()
    for name in files:
        size = (folder / name).stat().st_size
        with (folder / name).open("r+b") as file:
            file.write(bytes(size))
    assert (classifier.engine.run(pixels).logits == before).all()
