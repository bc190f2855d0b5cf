"""Networks of timm from training to an explanation, with every engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import model
from model.engines.base import Outputs
from model.nets.zoo import TIMM_NETWORKS, short_name
from model.training import data as datasets
from model.training.export import export
from model.training.loop import train
from model.training.quantize import Choice, add_openvino
from model.training.recipes import recipe_named
from tests.conftest import CPU, Silent, maps_of

FAST = "timm:mobilenetv3_small_050"
EXACT = {"timm:res2net50_26w_4s", "timm:hrnet_w18", "timm:pvt_v2_b0", "timm:pvt_v2_b1", "timm:pvt_v2_b2"}


def close(found: Outputs, expected: Outputs, tolerance: float) -> bool:
    return bool(np.abs(found.logits - expected.logits).max() <= tolerance * np.abs(expected.logits).max())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        (FAST, "float16"),
        *(pytest.param(name, "auto", marks=pytest.mark.slow) for name in TIMM_NETWORKS),
    ],
)
def test_it_is_trained_saved_loaded_quantised_and_explained(name: str, weights: Choice, tmp_path: Path) -> None:
    recipe = replace(
        recipe_named("smoke").with_network(name).lasting(1), resize=64, crop=64, sizes=(), batch_size=8, lr=0.01
    )
    data = datasets.load(recipe.data, Path(), holdout=recipe.holdout, limit=16)
    run = train(recipe, data, device=CPU, seed=0, folder=tmp_path / "run", observer=Silent())
    folder = tmp_path / f"{short_name(name)}-synthetic"
    card = export(run, data, folder, name=folder.name, device="cpu")
    assert card.architecture.name == name
    about = add_openvino(folder, data, weights=weights)
    assert about.weights in {"int8", "float16"}

    ours = model.load(folder, engine="torch", device="cpu")  # runs the self-test
    fast = model.load(folder, device="cpu")
    assert (ours.engine.name, fast.engine.name) == ("torch", "openvino")
    assert fast.engine.precision == "int8" or about.weights == "float16"
    pixels = data.test.pixels.numpy()[:3].repeat(2, axis=1).repeat(2, axis=2)
    if about.weights == "float16":
        assert close(fast.engine.run(pixels), ours.engine.run(pixels), 0.05)

    (prediction,) = ours.classify([pixels])
    maps = ours.grad_cam(pixels, 1)
    assert maps.shape == (3, 2, 2)
    assert (prediction.maps is not None) is (name in EXACT)
    if name in EXACT:
        expected = maps_of(prediction)[:, 1]
        np.testing.assert_allclose(maps, expected, atol=1e-2 * np.abs(expected).max())
    else:
        with pytest.raises(model.NotExplainable, match="the engine openvino computes no gradients"):
            fast.grad_cam(pixels, 1)
