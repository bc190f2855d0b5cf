"""The REST client of KServe, unmodified, in its own environment."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.app.fakes import CARD, LABELS, image_file, random_pixels
from tests.app.http.oip.clients import kserve_python
from tests.app.running import Running

_PROGRAM = Path(__file__).with_name("kserve_client.py")


def talk(
    folder: Path, port: int, name: str, pixels: NDArray[np.uint8], files: Sequence[bytes], forms: Sequence[str]
) -> dict[str, Any]:
    """What kserve_client.py prints."""
    path = folder / "images.npz"
    array = np.empty(len(files), np.object_)
    array[:] = files
    np.savez(path, pixels=pixels, files=array)
    done = subprocess.run(
        [kserve_python(), _PROGRAM, f"http://127.0.0.1:{port}", name, path, ",".join(forms)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_client_gets_the_classes_of_predict(running: Running, tmp_path: Path) -> None:
    pixels = np.stack([random_pixels(seed) for seed in range(40)])
    files = [image_file(seed) for seed in range(40)]
    forms = ("json", "binary", "fp32", "files")
    found = talk(tmp_path, running.port, CARD.name, pixels, files, forms)
    results = [running.post(file).json()["results"][0]["top_k"][0]["label"] for file in files]
    expected = [LABELS.index(label) for label in results]
    for form in forms:
        assert found[form] == expected, form
    assert (found["live"], found["ready"]) == (True, True)
    assert found["models"] == [True, True, False]
    assert "has no input 'image'" in found["error"]
    assert "400 Bad Request" in found["error"]
