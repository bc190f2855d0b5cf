import subprocess
import sys
from typing import Any

import pytest
import timm
import torch

from model.card import InputSpec
from model.errors import RecipeError
from model.nets.base import Network
from model.nets.check import check_network
from model.nets.zoo import TIMM_NETWORKS, accepts, build, short_name

# Small models of each form: their last feature map as [N, D, h, w], as [N, h, w, D], and tokens.
MAP, LAST, TOKENS = "mobilenetv3_small_050", "mambaout_femto", "vit_tiny_patch16_224"
# They are built in well under a second.
SMALL = ("timm:pvt_v2_b0", "timm:convnext_atto", "timm:mobilenetv3_small_050")


def built(name: str, **arguments: Any) -> Any:
    if name == TOKENS:
        arguments = {"img_size": 32} | arguments
    torch.manual_seed(0)
    return build(f"timm:{name}", num_classes=7, **arguments)


def spec_of(spec: InputSpec, side: int) -> InputSpec:
    return spec.model_copy(update={"resize": side, "crop": side})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in TIMM_NETWORKS]
)
def test_the_named_networks_keep_to_the_contract(name: str, spec: InputSpec) -> None:
    check_network(build(name, num_classes=7), spec_of(spec, 64), num_classes=7, sides=(96,))


@pytest.mark.parametrize("name", [MAP, LAST, TOKENS])
def test_every_form_of_the_last_feature_map_gives_timms_logits(name: str, spec: InputSpec) -> None:
    side = 32 if name == TOKENS else 64
    net = built(name).eval()
    check_network(net, spec_of(spec, side), num_classes=7)
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        features = net.forward_features(images)
        expected = net.net(images)
        assert expected.std() > 0, "equal logits would prove nothing"
        torch.testing.assert_close(net.forward_head(features).logits, expected)
    assert features.ndim == 4
    assert net.spatial is (name != TOKENS)


@pytest.mark.parametrize(
    ("name", "exact"),
    [("mobilenetv2_035", True), ("pvt_v2_b0", True), (LAST, False), (MAP, False), ("convnext_atto", False)],
)
def test_maps_are_exact_if_the_head_is_pooling_and_a_linear_layer(name: str, exact: bool) -> None:
    net = built(name).eval()
    with torch.inference_mode():
        logits, _, maps = net.forward_head(net.forward_features(torch.randn(2, 3, 64, 64)))
    assert (maps is not None) is exact
    if exact:
        torch.testing.assert_close(maps.sum((2, 3)) + net.get_classifier().bias, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [MAP, "pvt_v2_b0", TOKENS])
def test_the_state_dict_is_timms_in_both_directions(name: str) -> None:
    options: Any = {"img_size": 32} if name == TOKENS else {}
    theirs = timm.create_model(name, pretrained=False, num_classes=7, **options)
    net = built(name)
    state = theirs.state_dict()
    assert list(net.state_dict()) == list(state)
    assert net.load_state_dict(state) == ([], [])
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    theirs.load_state_dict(built(name).state_dict())
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.load_state_dict(averaged.state_dict())
    assert set(averaged.state_dict()) == {f"module.{key}" for key in state} | {"n_averaged"}


def test_keys_that_are_missing_or_unknown_are_errors() -> None:
    net = built(MAP)
    state = net.state_dict()
    state["other"] = state.pop("classifier.bias")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*classifier.bias.*Unexpected.*other"):
        net.load_state_dict(state)


def test_the_classifier_is_known_by_its_keys() -> None:
    assert built(MAP).classifier_keys() == {"classifier.weight", "classifier.bias"}
    assert built("convnext_atto").classifier_keys() == {"head.fc.weight", "head.fc.bias"}


def test_biases_and_scales_have_no_weight_decay() -> None:
    net: Network = built("convnext_atto")
    exempt = set(net.no_weight_decay())
    assert {"net.stem.0.bias", "net.stages.0.blocks.0.gamma", "net.head.norm.weight"} <= exempt
    assert "net.stem.0.weight" not in exempt
    assert {"net.pos_embed", "net.cls_token"} <= set(built(TOKENS).no_weight_decay()), "listed by the model"


def test_muon_trains_plain_filters_without_a_bias() -> None:
    net: Network = built(MAP)
    modules = dict(net.named_modules())
    trained = [modules[name.removesuffix(".weight")] for name in net.muon_parameters()]
    assert trained
    assert all(module.bias is None and module.groups == 1 for module in trained)


def test_dropout_and_stochastic_depth_are_arguments() -> None:
    net = built("pvt_v2_b0", drop_rate=0.5, drop_path_rate=0.3)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(net(images), net(images))
        net.eval()
        assert torch.equal(net(images), net(images))
    assert accepts("timm:pvt_v2_b0", "drop_path_rate")
    assert not accepts("timm:pvt_v2_b0", "stem")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("res2net50_26w_4x", {}, "there is no network 'timm:res2net50_26w_4x': did you mean timm:res2net50_26w_4s, "),
        ("qqqqqqqqq", {}, r"timm.list_models\(\) lists all"),
        ("hf-hub:timm/resnet18", {}, "there is no network"),
        ("resnet18", {"img_size": 64}, "cannot be built: .*img_size"),
        ("crossvit_tiny_240", {}, "cannot be built: its forward_features returns neither a map nor tokens"),
        ("deit_tiny_distilled_patch16_224", {}, "cannot be built: it is not a classifier with one last layer"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_sentence(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build(f"timm:{name}", **arguments)
    assert "\n" not in str(caught.value)


def test_without_timm_the_message_names_the_extra() -> None:
    # A None in sys.modules makes the import fail, as if the package were not installed.
    code = "import sys; sys.modules['timm'] = None; from model.nets.zoo import build; build('timm:pvt_v2_b0')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("RecipeError: the network 'timm:pvt_v2_b0' needs timm: install tenfold[zoo]\n")


@pytest.mark.parametrize(
    ("name", "short"),
    [("resnet18", "resnet18"), ("timm:pvt_v2_b0", "pvt_v2_b0"), ("timm:resnet50.a1_in1k", "resnet50.a1_in1k")],
)
def test_short_names_are_allowed_in_names_of_bundles(name: str, short: str) -> None:
    assert short_name(name) == short
