"""The command tenfold networks."""

import subprocess
import sys

import pytest

from model.commands.networks import main
from model.nets.sizes import size_of
from model.nets.zoo import BUILDERS, TIMM_NETWORKS
from tests.model.commands.inprocess import invoke


def test_a_row_has_the_sizes_the_explanation_and_the_extra() -> None:
    result = invoke(main, "resnet18", "timm:mobilenetv3_small_050", "--size", "64")
    assert (result.exit_code, result.stderr) == (0, "")
    title, header, *rows = result.stdout.splitlines()
    assert title == "ten classes, images of 64 x 64 pixels, recipe quick"
    assert header.split() == ["network", "parameters", "multiply-adds", "map", "explained", "extra"]
    assert [row.split() for row in rows] == [
        ["resnet18", "11.2", "M", "2,222", "M", "8x8", "exact", "maps"],
        ["timm:mobilenetv3_small_050", "0.6", "M", "2", "M", "2x2", "Grad-CAM", "zoo"],
    ]


def test_the_recipe_determines_the_size_and_the_arguments() -> None:
    narrow = invoke(main, "resnet18", "--recipe", "smoke").stdout
    assert "images of 32 x 32 pixels, recipe smoke" in narrow
    assert "0.7 M" in narrow, "width 16"


def test_tokens_are_not_explained() -> None:
    assert size_of("timm:vit_tiny_patch16_224", 32, {"img_size": 32}).explained == "no"


@pytest.mark.slow
def test_the_documented_networks_are_listed() -> None:
    rows = invoke(main).stdout.splitlines()[2:]
    assert [row.split()[0] for row in rows] == [*BUILDERS, *TIMM_NETWORKS]


@pytest.mark.slow
def test_without_timm_its_networks_are_listed_with_their_extra() -> None:
    code = """
import sys
sys.modules["timm"] = None
import typer
from model.commands.networks import main
typer.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == [TIMM_NETWORKS[-1], "-", "-", "-", "-", "zoo"]


@pytest.mark.parametrize("name", ["resnet17", "timm:pvt_v2_b9"])
def test_an_unknown_name_is_one_sentence_with_the_nearest(name: str) -> None:
    result = invoke(main, name)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: there is no network {name!r}: did you mean ")
    assert result.stderr.count("\n") == 1
