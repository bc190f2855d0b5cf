import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import RecipeError
from model.nets.zoo import build
from model.training.pretrained import read_state_dict, start_from
from tests.model.nets.plain import MixedNetwork, PlainCNN


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """A state dict of torchvision's resnet18 for ImageNet, with random numbers."""
    torch.manual_seed(1)
    state: dict[str, Tensor] = torchvision.models.resnet18(weights=None).state_dict()
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_all_but_the_classifier_is_loaded(imagenet: dict[str, Tensor], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(imagenet, path)
    else:
        save_file(imagenet, path)
    net: Any = build("resnet18", stem="imagenet", num_classes=10)
    random = net.fc.weight.clone()
    start_from(net, read_state_dict(path).state)
    state = net.state_dict()
    assert torch.equal(state["fc.weight"], random)
    assert all(torch.equal(state[key], imagenet[key]) for key in state if not key.startswith("fc."))


def test_a_classifier_of_the_same_size_is_loaded_too(imagenet: dict[str, Tensor]) -> None:
    net = build("resnet18", stem="imagenet", num_classes=1000)
    start_from(net, imagenet)
    assert torch.equal(net.state_dict()["fc.bias"], imagenet["fc.bias"])


def test_the_network_of_a_checkpoint_is_taken(imagenet: dict[str, Tensor], tmp_path: Path) -> None:
    averaged = {key: 0 * value for key, value in imagenet.items()}
    torch.save({"net": imagenet, "ema": averaged, "history": []}, tmp_path / "checkpoint.pt")
    state = read_state_dict(tmp_path / "checkpoint.pt").state
    assert state.keys() == imagenet.keys()
    assert all(torch.equal(state[key], imagenet[key]) for key in state)


# What training programs save: those of torchvision, timm, Lightning, mmpretrain, pytorch-cifar and others.
FORMS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "state_dict": lambda state: {"epoch": 9, "state_dict": state, "best_acc": 0.9},
    "model, with options": lambda state: {"model": state, "optimizer": {"state": {}}, "args": Namespace(lr=0.1)},
    "model and its average": lambda state: {
        "model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.", zeros(state))},
        "model": state,
    },
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": np.float64(0.5)},
    "net in DataParallel": lambda state: {"net": prefixed("module.", state), "acc": 95, "epoch": 1},
    "network": lambda state: {"network": {"weights": [state]}},
    "Lightning": lambda state: {
        "state_dict": {**prefixed("model.", state), "criterion.weight": torch.ones(5), "fc.weight": torch.ones(2)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    },
    "backbone": lambda state: prefixed("backbone.", {key: state[key] for key in state if "fc." not in key}),
    "several prefixes": lambda state: {"state_dict": prefixed("_orig_mod.module.model.", state)},
    "average of torch": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},
    "with Adam": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": [{}]},
    },
    "parameters": lambda state: {key: torch.nn.Parameter(value, requires_grad=False) for key, value in state.items()},
    "with other values": lambda state: {**state, "epoch": 3, "meta": {"classes": ["a", "b"]}},
}  # fmt: skip


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: 0 * value for key, value in state.items()}


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_inside_other_values_is_found(form: str, tmp_path: Path) -> None:
    trained = build("resnet18", width=8, num_classes=7).state_dict()
    torch.save(FORMS[form](trained), tmp_path / "saved.pth")
    net = build("resnet18", width=8, num_classes=10)
    start_from(net, read_state_dict(tmp_path / "saved.pth").state)
    for key in ("conv1.weight", "layer1.0.bn1.weight", "layer4.1.bn2.running_var"):
        assert torch.equal(net.state_dict()[key], trained[key])


def test_a_whole_network_is_refused(tmp_path: Path) -> None:
    torch.save({"model": build("resnet18", width=8)}, tmp_path / "saved.pt")
    with pytest.raises(RecipeError, match="or holds objects such as the network itself"):
        read_state_dict(tmp_path / "saved.pt")


def test_the_classifier_is_found_whatever_its_name() -> None:
    trained, net = PlainCNN(num_classes=5), PlainCNN(num_classes=7)
    random = net.classifier.weight.clone()
    start_from(net, trained.state_dict())
    assert torch.equal(net.classifier.weight, random)
    assert torch.equal(net.state_dict()["body.0.weight"], trained.state_dict()["body.0.weight"])
    with pytest.raises(RecipeError, match="belongs to another network"):
        start_from(net, MixedNetwork().state_dict())


def test_a_state_dict_without_a_classifier_or_counters_is_accepted(imagenet: dict[str, Tensor]) -> None:
    old = {key: value for key, value in imagenet.items() if "fc." not in key and "num_batches" not in key}
    net = build("resnet18", stem="imagenet", num_classes=10)
    start_from(net, old)
    assert torch.equal(net.state_dict()["conv1.weight"], imagenet["conv1.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", ""])
def test_a_name_in_front_of_all_keys_may_differ(imagenet: dict[str, Tensor], prefix: str) -> None:
    net = build("resnet18", stem="imagenet", num_classes=10)
    start_from(net, {prefix + key: value for key, value in imagenet.items()})
    assert torch.equal(net.state_dict()["conv1.weight"], imagenet["conv1.weight"])
    wrapped = build("timm:resnet18", num_classes=10)
    start_from(wrapped, imagenet)
    assert torch.equal(wrapped.state_dict()["conv1.weight"], imagenet["conv1.weight"])


def test_the_weights_of_a_bundle_are_taken(tiny_bundle: Path) -> None:
    net = build("resnet18", stem="cifar", width=8, num_classes=3)
    start_from(net, read_state_dict(tiny_bundle).state)
    weights = load_file(tiny_bundle / "model.safetensors")
    assert torch.equal(net.state_dict()["conv1.weight"], weights["conv1.weight"].float())


@pytest.mark.parametrize(("name", "stem"), [("resnet34", "imagenet"), ("resnet50", "imagenet"), ("resnet18", "cifar")])
def test_the_weights_of_another_network_are_refused(imagenet: dict[str, Tensor], name: str, stem: str) -> None:
    net = build(name, stem=stem)
    before = net.state_dict()["conv1.weight"].clone()
    with pytest.raises(RecipeError, match=r"--init belongs to another network .*: choose its --network and --stem"):
        start_from(net, imagenet)
    assert torch.equal(net.state_dict()["conv1.weight"], before)


def test_a_missing_file_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no file .*none\.pth: give --init a bundle or a state dict"):
        read_state_dict(tmp_path / "none.pth")


@pytest.mark.parametrize("contents", [b"", b"not at all", b"PK\x03\x04 and no more"])
@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        (".pth", "it is damaged, was not written by torch.save, or holds objects such as the network itself"),
        (".safetensors", "it is damaged or was not written by safetensors"),
    ],
)
def test_another_file_is_refused(suffix: str, reason: str, contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"wrong{suffix}"
    path.write_bytes(contents)
    with pytest.raises(RecipeError) as caught:
        read_state_dict(path)
    assert str(caught.value) == f"{path} is not a state dict ({reason}): give --init a .pth or .safetensors file"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"is not a state dict \(it cannot be read: .*\): give --init"):
        read_state_dict(Path("/proc/self/mem"))


def test_a_dict_of_other_values_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(RecipeError, match="is not a state dict"):
        read_state_dict(tmp_path / "checkpoint.pth")


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(RecipeError, match="is not a state dict"):
        read_state_dict(path)
