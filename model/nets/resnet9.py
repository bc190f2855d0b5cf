"""ResNet-9: a shallow network for images of 32 x 32 that trains and serves fast.

Source: Page, "How to Train Your ResNet", 2018, https://myrtle.ai/how-to-train-your-resnet/. Here the last stage ends in
one convolution instead of a residual block, which would have a third of the weights, and the head is global average
pooling instead of the maximum, so that its class-activation maps are exact.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from model.nets.base import PooledNetwork
from model.nets.resnet import BasicBlock, conv3x3


class ResNet9(PooledNetwork):
    """A stem, three stages that each halve the map, global average pooling and a linear head.

    A stage is conv3x3 - BN - ReLU - 2x2 max-pool, then a residual block, or conv3x3 - BN - ReLU in the last stage.

    Args:
        widths: channels of the stem and of the three stages.
        num_classes: size C of the head.
    """

    def __init__(self, widths: Sequence[int], *, num_classes: int = 10) -> None:
        super().__init__()
        stem, *stages = widths
        self.stem = _convolution(3, stem)
        self.stage1 = _stage(stem, stages[0], BasicBlock(stages[0], stages[0]))
        self.stage2 = _stage(stages[0], stages[1], BasicBlock(stages[1], stages[1]))
        self.stage3 = _stage(stages[1], stages[2], _convolution(stages[2], stages[2]))
        self.fc = nn.Linear(stages[2], num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)  # the block starts as its shortcut (arXiv:1706.02677)

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return features

    def get_classifier(self) -> nn.Linear:
        return self.fc


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(in_channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _stage(in_channels: int, channels: int, block: nn.Module) -> nn.Sequential:
    return nn.Sequential(_convolution(in_channels, channels), nn.MaxPool2d(2), block)
