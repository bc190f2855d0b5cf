"""From labels of clients to a new version, by the commands of docs/operations.md."""

import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import model
from model.card import read_card
from tests.app.running import ROOT, serving
from tests.documents import blocks, read, section
from tests.model.training.data.images import write_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KEY = "secret"


def tenfold(*arguments: str | Path, folder: Path) -> str:
    """What the program prints."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from app.cli.main import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented(command: str) -> list[str]:
    """The arguments of a command in the documentation."""
    (block,) = blocks(section(read("docs/operations.md"), "Train on it"), "sh")
    lines = block.replace("\\\n", " ").splitlines()
    return next(shlex.split(line)[1:] for line in lines if shlex.split(line)[1:2] == [command])


def test_labels_of_clients_become_the_next_version(folder_bundle: Path, tmp_path: Path) -> None:
    weights, store = tmp_path / "weights", tmp_path / "feedback.sqlite"
    first = shutil.copytree(folder_bundle, weights / "animals")
    before = read_card(first / "card.json")
    images = folder_bundle.parent / "images"
    with serving(
        load=partial(model.load, first, engine="torch", device="cpu"),
        name=before.name,
        weights_root=weights,
        device="cpu",
        feedback=store,
        feedback_images=True,
        admin_keys=KEY,
    ) as running:
        for seed in range(6):
            image = write_image(tmp_path / "uploads" / f"{seed}.png", 9000 + seed).read_bytes()
            label = {"request_id": running.post(image).headers["X-Request-ID"], "label": before.labels[0]}
            assert running.client.post("/feedback", json=label).status_code == 200

        export = documented("feedback")
        export[-2:] = [str(store), "data/feedback"]
        assert "6 images, and labels.csv of 6 labelled predictions" in tenfold(*export, folder=tmp_path)

        # The options of the documentation, with smaller values.
        options = documented("train")
        assert options[options.index("--data") :][:4] == ["--data", "data", "--data", "folder:data/feedback"]
        smaller = {
            "transfer": "smoke",
            "weights/resnet18-cifar10": str(first),
            "data": f"folder:{images}",
            "resnet18-cifar10": before.name,
            "weights/resnet18-cifar10-2": "weights/animals-2",
        }
        settings = ["--set", "sizes=[]", "--epochs", "1", "--device", "cpu"]
        out = tenfold(*(smaller.get(option, option) for option in options), *settings, folder=tmp_path)
        assert "added to images: 6 of 6 images of feedback" in out
        second = read_card(weights / "animals-2" / "card.json")
        assert (second.name, second.labels) == (before.name, before.labels)
        assert second.version != before.version
        assert second.training.data is not None
        assert [added.name for added in second.training.data.added] == ["feedback"]
        assert "| added | feedback: " in (weights / "animals-2" / "README.md").read_text(encoding="utf-8")

        url = f"http://127.0.0.1:{running.port}"
        report = tenfold("reload", "animals-2", "--url", url, "--admin-key", KEY, folder=tmp_path)
        assert report.startswith(f"{before.name}: version {second.version} is served\n")
        assert running.post(image).json()["model"] == {"name": before.name, "version": second.version}

    # What the training printed serves the new bundle.
    (line,) = [line for line in out.splitlines() if line.startswith("serve it: ")]
    words = shlex.split(line.removeprefix("serve it: "))
    assert words[-3:] == ["serve", "--weights", "weights/animals-2"]
    assert Path(tmp_path, words[0]).exists() or shutil.which(words[0])
