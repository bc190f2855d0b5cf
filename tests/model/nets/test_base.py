import torch

from model.nets.base import count_multiply_adds, count_parameters
from model.nets.zoo import build
from tests.model.nets.plain import MixedNetwork, PlainCNN


def test_muon_trains_plain_filters_but_the_first_and_those_of_the_classifier() -> None:
    assert set(PlainCNN().muon_parameters()) == {"body.3.weight", "body.6.weight"}
    assert set(MixedNetwork().muon_parameters()) == {"shared.weight", "hidden.weight"}, "not `grouped`"


def test_the_classifier_is_known_by_its_parameters() -> None:
    assert PlainCNN().classifier_keys() == {"classifier.weight", "classifier.bias"}


def test_the_maps_of_global_average_pooling_sum_to_the_logits() -> None:
    net = PlainCNN(num_classes=5).eval()
    with torch.inference_mode():
        images = torch.randn(3, 3, 24, 40)
        logits, features, maps = net.forward_head(net.forward_features(images))
        assert (logits.shape, features.shape) == ((3, 5), (3, 64))
        assert maps is not None
        assert maps.shape == (3, 5, 6, 10)
        torch.testing.assert_close(maps.sum((2, 3)) + net.classifier.bias, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(images), logits)


def test_without_an_own_forward_the_logits_are_those_of_the_head() -> None:
    net = MixedNetwork().eval()
    with torch.inference_mode():
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(net(images), net.forward_head(net.forward_features(images)).logits)


def test_a_plain_networks_multiply_adds() -> None:
    # Three convolutions on 32 x 32, 16 x 16 and 8 x 8 cells, and the classifier.
    expected = 32**2 * 16 * 27 + 16**2 * 32 * 9 * 16 + 8**2 * 64 * 9 * 32 + 64 * 10
    assert count_multiply_adds(PlainCNN(), 32) == expected
    assert count_parameters(PlainCNN()) == 16 * 28 + 32 * (9 * 16 + 1) + 64 * (9 * 32 + 1) + 65 * 10


def test_counting_leaves_the_network_as_it_was() -> None:
    net = build("resnet18", width=8).train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    count_multiply_adds(net, 32)
    assert net.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
