"""The Network contract: what training, export, engines and explanations may assume of a network."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadOutputs(NamedTuple):
    """What a head computes from the last feature map.

    Attributes:
        logits: float[N, C].
        features: the pooled, penultimate features, float[N, D].
        maps: exact class-activation maps, float[N, C, h, w]: their sum over the h x w cells plus a constant of the
            class is the logit (Zhou et al. 2016, arXiv:1512.04150). None for a head that has no such maps.
    """

    logits: Tensor
    features: Tensor
    maps: Tensor | None


class Network(nn.Module, ABC):
    """An image classifier in two parts, the feature extractor and the head.

    Engines run `forward_features` in the precision of the hardware, under autocast, and `forward_head` in float32.
    Both must run in training and in evaluation mode, for every image size that the recipe trains at, and give each
    image outputs that do not depend on the rest of the batch in evaluation mode. Dropout and other random layers draw
    from PyTorch's global generator, which the training loop seeds in each epoch.

    A network whose head is global average pooling and one linear layer is a `PooledNetwork`.

    Attributes:
        spatial: whether the cells of the last feature map are places in the image. Grad-CAM explains such a network if
            its head returns no class-activation maps.
    """

    spatial: bool = True

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """The number C of logits."""

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images, float[N, 3, H, W], to the last feature map, float[N, D, h, w]."""

    @abstractmethod
    def forward_head(self, features: Tensor) -> HeadOutputs:
        """The last feature map, float[N, D, h, w], to logits, pooled features and class-activation maps."""

    @abstractmethod
    def get_classifier(self) -> nn.Module:
        """The last layer. Its shape depends on the number of classes, and no other layer's does."""

    def forward_logits(self, features: Tensor) -> Tensor:
        """The logits of `forward_head`, float[N, C], without what training does not need."""
        return self.forward_head(features).logits

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, float[N, 3, H, W], to logits, float[N, C]."""
        return self.forward_logits(self.forward_features(x))

    def classifier_keys(self) -> set[str]:
        """The keys of the classifier's parameters in the state dict."""
        own = {id(parameter) for parameter in self.get_classifier().parameters()}
        return {name for name, parameter in self.named_parameters() if id(parameter) in own}

    def muon_parameters(self) -> Collection[str]:
        """Names of the parameters that Muon trains in a recipe that uses it; SGD trains the others.

        The default is the filters of all convolutions except grouped ones, the first one and the classifier. Muon
        keeps a filter's norm fixed, so a normalisation layer should follow each of these convolutions.
        """
        classifier = self.get_classifier()
        convolutions = [
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d) and module.groups == 1 and module is not classifier
        ]
        return {f"{name}.weight" for name in convolutions[1:]}

    def no_weight_decay(self) -> Collection[str]:
        """Names of the parameters without weight decay. The default is none: all parameters have it."""
        return ()


class PooledNetwork(Network):
    """A network whose head is global average pooling and one linear layer, the classifier.

    A subclass gives `forward_features` and `get_classifier`. Its class-activation maps are exact.
    """

    @abstractmethod
    def get_classifier(self) -> nn.Linear: ...

    @property
    def num_classes(self) -> int:
        return self.get_classifier().out_features

    def pool(self, features: Tensor) -> Tensor:
        """The last feature map, float[N, D, h, w], to its mean over the cells, float[N, D]."""
        return F.adaptive_avg_pool2d(features, 1).flatten(1)

    def forward_head(self, features: Tensor) -> HeadOutputs:
        classifier, pooled = self.get_classifier(), self.pool(features)
        return HeadOutputs(classifier(pooled), pooled, class_activation_maps(features, classifier))

    def forward_logits(self, features: Tensor) -> Tensor:
        # Without the maps.
        logits: Tensor = self.get_classifier()(self.pool(features))
        return logits


def class_activation_maps(features: Tensor, classifier: nn.Linear) -> Tensor:
    """The exact maps of a head that is global average pooling and one linear layer (Zhou et al. 2016).

    Args:
        features: the last feature map, float[N, D, h, w].
        classifier: the linear layer, from D to C.

    Returns:
        float[N, C, h, w]. Their sums over the h x w cells are the logits without the bias.
    """
    cells = features.shape[2] * features.shape[3]
    return F.conv2d(features, classifier.weight[:, :, None, None] / cells)


def count_parameters(net: nn.Module) -> int:
    """The number of trained values in the network."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_multiply_adds(net: Network, side: int) -> int:
    """Multiply-adds of one forward pass over one image of side x side pixels, in convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes = copy.deepcopy(net).eval().to("meta")  # counts without computing
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shapes(torch.zeros(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops()) // 2
