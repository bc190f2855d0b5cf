"""The engine protocol. Imports no runtime."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

EngineName = Literal["auto", "openvino", "onnx", "torch"]
DeviceName = Literal["auto", "cpu", "cuda"]


class Outputs(NamedTuple):
    """The outputs of one forward pass.

    Attributes:
        logits: float32[N, C].
        features: pooled, penultimate features, float32[N, D].
        maps: class-activation maps (Zhou et al. 2016, arXiv:1512.04150), the contribution of each cell of the last
            feature map to each logit, float32[N, C, h, w]. Their sum plus the classifier's bias is the logit; their
            positive part is Grad-CAM of that feature map (Selvaraju et al. 2017, arXiv:1610.02391). None if the
            network's head has no such maps.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    maps: NDArray[np.float32] | None


@runtime_checkable
class Engine(Protocol):
    """Runs a network. It is called from one thread at a time.

    Attributes:
        name: of the runtime, such as "torch".
        device: a readable name of the hardware.
        precision: of the arithmetic, such as "bfloat16".
        preferred_batch: the largest number of images that it runs in one forward pass.
    """

    name: str
    device: str
    precision: str
    preferred_batch: int

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Run the network on images after the test transform, uint8[N, H, W, 3], N >= 1. Normalises them itself."""
        ...


@runtime_checkable
class GradientEngine(Engine, Protocol):
    """An engine that also computes gradients."""

    def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32] | None:
        """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the last feature map, before its ReLU.

        The maps are the channels of the feature map, each weighted with the mean gradient of the logit.

        Args:
            pixels: as for `run`.
            index: of the class whose logit is explained.

        Returns:
            float32[N, h, w]. None if the cells of the last feature map are no places in the image.
        """
        ...
