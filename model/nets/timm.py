"""An adapter from the classifiers of timm (https://huggingface.co/docs/timm) to the Network contract."""

import copy
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from model.errors import RecipeError
from model.nets.base import HeadOutputs, Network, class_activation_maps

# Where the adapter holds the model. The state dict leaves it out, so its keys are timm's.
_INNER = "net."


class TimmNetwork(Network):
    """A timm model with random weights.

    The state dict has timm's keys, so a published state dict can be loaded, and timm can load a bundle's weights.

    The last feature map is what the model's `forward_features` returns, as [N, D, h, w]. A model that returns tokens,
    [N, L, D], has a map of L x 1 cells, which are no places in the image. The pooled features are the input of the
    classifier. The class-activation maps are exact if the model's head is global average pooling and one linear layer,
    which is tested once, on random features.

    Args:
        name: of the model, without the prefix timm:.
        num_classes: size C of the head.
        drop_rate: of the dropout before the classifier. The default is the model's.
        drop_path_rate: of stochastic depth (Huang et al. 2016, arXiv:1603.09382). The default is the model's.
        img_size: side of the images in pixels, for a model that is built for one size.

    Raises:
        RecipeError: timm has no such model.
        TypeError, ValueError, RuntimeError, AssertionError: the model does not take these arguments, or does not have
            one last feature map and one last layer.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int = 10,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        img_size: int | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = [f"timm:{each}" for each in get_close_matches(name, timm.list_models())]
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all"
            raise RecipeError(f"there is no network 'timm:{name}': {hint}")
        options = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "img_size": img_size}
        given: Any = {option: value for option, value in options.items() if value is not None}
        net: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, **given)
        if not isinstance(net.get_classifier(), nn.Module) or net.num_classes != num_classes:
            raise ValueError("it is not a classifier with one last layer")
        self.register_state_dict_post_hook(_leave_out_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]
        self.net = net
        shape = _feature_shape(net, img_size or net.pretrained_cfg["input_size"][-1])
        self.spatial = len(shape) == 4
        self._channels_last = self.spatial and getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        self._exact = self.spatial and self._pools(shape)

    @property
    def num_classes(self) -> int:
        classes: int = self.net.num_classes
        return classes

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.net.forward_features(x)
        if not self.spatial:
            return features.mT.unsqueeze(-1)
        return features.permute(0, 3, 1, 2) if self._channels_last else features

    def forward_head(self, features: Tensor) -> HeadOutputs:
        native = self._native(features)
        logits, pooled = self.net.forward_head(native), self.net.forward_head(native, pre_logits=True)
        maps = class_activation_maps(features, self.get_classifier()) if self._exact else None
        return HeadOutputs(logits, pooled, maps)

    def forward_logits(self, features: Tensor) -> Tensor:
        # Once, because the head can have dropout and BatchNorm.
        logits: Tensor = self.net.forward_head(self._native(features))
        return logits

    def get_classifier(self) -> Any:
        return self.net.get_classifier()

    def classifier_keys(self) -> set[str]:
        return {name.removeprefix(_INNER) for name in super().classifier_keys()}

    def muon_parameters(self) -> Collection[str]:
        # A convolution with a bias has no normalisation after it.
        named = dict(self.named_parameters())
        return {name for name in super().muon_parameters() if name.removesuffix("weight") + "bias" not in named}

    def no_weight_decay(self) -> Collection[str]:
        """As timm's optimizers have it: biases, scales and what the model lists."""
        listed = self.net.no_weight_decay() if hasattr(self.net, "no_weight_decay") else ()
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim <= 1 or name.removeprefix(_INNER) in listed
        }

    def _native(self, features: Tensor) -> Tensor:
        """The last feature map of the contract in the form that the model returned."""
        if not self.spatial:
            return features.squeeze(-1).mT
        return features.permute(0, 2, 3, 1) if self._channels_last else features

    def _pools(self, shape: torch.Size) -> bool:
        """Whether the head is global average pooling and a linear layer, tested on random features."""
        if not isinstance(self.get_classifier(), nn.Linear):
            return False
        height, width, channels = shape[1:] if self._channels_last else (*shape[2:], shape[1])
        features = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
        self.net.eval()
        try:
            with torch.inference_mode():
                pooled = self.net.forward_head(self._native(features), pre_logits=True)
        finally:
            self.net.train()
        mean = features.mean((2, 3))
        return pooled.shape == mean.shape and torch.allclose(pooled, mean, atol=1e-5)


def _feature_shape(net: Any, side: int) -> torch.Size:
    """The shape that `forward_features` returns for one image of side x side pixels, without computing it."""
    shapes = copy.deepcopy(net).eval().to("meta")
    with torch.inference_mode():
        features = shapes.forward_features(torch.zeros(1, 3, side, side, device="meta"))
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ValueError("its forward_features returns neither a map nor tokens")
    return features.shape


def _leave_out_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for key in [key for key in state if key.startswith(prefix + _INNER)]:
        state[prefix + key.removeprefix(prefix + _INNER)] = state.pop(key)


def _add_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + _INNER + key.removeprefix(prefix)] = state.pop(key)
