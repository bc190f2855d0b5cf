"""Accuracy by the number of training images: python -m benchmarks.few_images FOLDER.

FOLDER/CLASS/* are the images. 50 images of each class are for the test, and N of the others for training. The recipe
`transfer` is compared with the logistic regression of scikit-learn on the features of the initial weights.
"""

import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import model
from model.bundle import open_bundle
from model.training.data import load_for
from model.training.evaluate import outputs
from model.training.recipes import recipe_named
from model.training.run import train_bundle

TEST = 50


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the images, FOLDER/CLASS/*.")],
    init: Annotated[Path, typer.Option(help="Bundle to start from.")] = Path("weights/resnet9-cifar10"),
    counts: Annotated[str, typer.Option(help="Numbers of images of a class.")] = "5,10,20,50,200",
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs for each.")] = 3,
) -> None:
    """Train on few images several times, and print a table of the accuracy on the same test images."""
    typer.echo("| images of a class | transfer | with backbone_lr=0.1 | logistic regression |\n|---|---|---|---|")
    for count in map(int, counts.split(",")):
        runs = np.array([run(folder, init, count=count, seed=seed) for seed in range(seeds)])
        cells = (f"{each.mean():.1%} ({each.min():.1%} to {each.max():.1%})" for each in runs.T)
        typer.echo(f"| {count} | {' | '.join(cells)} |")


def run(folder: Path, init: Path, *, count: int, seed: int) -> list[float]:
    """Train on `count` images of each class.

    Args:
        folder: of all images.
        init: bundle to start from.
        count: number of images of a class for training and the held-out part.
        seed: of the choice of these images and of the run. The test images are the same for all.

    Returns:
        Test accuracy of the recipe, of the recipe with backbone_lr=0.1, and of the logistic regression.
    """
    recipe = recipe_named("transfer").for_bundle(open_bundle(init).card)
    with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nowhere:
        place = Path(name)
        for label in sorted(path for path in folder.iterdir() if path.is_dir()):
            files = np.random.default_rng(0).permutation(sorted(map(str, label.iterdir())))
            chosen = np.random.default_rng(seed + 1).permutation(files[TEST:])[:count]
            for part, paths in (("train", chosen), ("test", files[:TEST])):
                (place / "images" / part / label.name).mkdir(parents=True)
                for path in map(Path, paths):
                    (place / "images" / part / label.name / path.name).symlink_to(path.absolute())
        data, cache = f"folder:{place / 'images'}", place / "cache"
        accuracies = []
        for variant in (recipe, replace(recipe, backbone_lr=0.1)):
            log = place / f"run-{variant.backbone_lr}"
            out = log / "out"
            with contextlib.redirect_stdout(nowhere):
                train_bundle(variant, data=data, run=log, out=out, init=init, device="cpu", seed=seed, cache=cache)
            accuracies.append(open_bundle(out).card.metrics.top1)
        images = load_for(recipe, data, cache=cache, report=lambda _: None)
        engine = model.load(init, engine="torch", device="cpu").engine
        features = [
            outputs(engine, recipe.input_spec(), part.pixels.numpy()).features
            for part in (images.train, images.holdout, images.test)
        ]
        truth = np.concatenate([images.train.labels.numpy(), images.holdout.labels.numpy()])
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        regression.fit(np.concatenate(features[:2]), truth)
        accuracies.append(float(regression.score(features[2], images.test.labels.numpy())))
        return accuracies


if __name__ == "__main__":
    typer.run(main)
