"""Residual networks: ResNet, ResNeXt and Wide ResNet, with a stem for images of 32 x 32 or of 224 x 224.

Sources: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385); Xie,
Girshick, Dollár, Tu, He, "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017 (arXiv:1611.05431);
Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016 (arXiv:1605.07146). All have the form of torchvision: the 3x3
convolution of a bottleneck has the stride. Parameter names are torchvision's, so its pretrained state dicts can be
loaded.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from model.nets.base import PooledNetwork

Stem = Literal["cifar", "imagenet"]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=bias)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of a block whose input and output differ in shape; None is the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus the shortcut, ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1, *, conv_bias: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride, bias=conv_bias)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, bias=conv_bias)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """conv1x1 - BN - ReLU - conv3x3 - BN - ReLU - conv1x1 - BN, plus the shortcut, ReLU.

    The output has four times `channels`. In a ResNet the 3x3 convolution has `channels` too. `groups` divides it, and
    `width_per_group` is the width of a group where `channels` is 64.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        conv_bias: bool = False,
    ) -> None:
        super().__init__()
        inner = channels * width_per_group // 64 * groups
        if not inner:
            raise ValueError(f"groups of {width_per_group} channels at a width of 64 have none at {channels}")
        self.conv1 = conv1x1(in_channels, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups=groups, bias=conv_bias)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, channels * self.expansion)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class ResNet(PooledNetwork):
    """Four stages of residual blocks, global average pooling and a linear head.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in each of the four stages.
        num_classes: size C of the head.
        stem: "cifar" is conv3x3 of stride 1; "imagenet" is conv7x7 of stride 2 and a 3x3 max-pool of stride 2.
        width: channels of the first stage; each later stage doubles them.
        groups: groups of the bottlenecks' 3x3 convolutions, the cardinality of a ResNeXt.
        width_per_group: channels of each group in the first stage of a network whose `width` is 64; others in
            proportion.
        conv_bias: whether the blocks' 3x3 convolutions have a bias.
        zero_init_residual: start each block's last BatchNorm weight at zero, so that the block starts as its shortcut
            (Goyal et al. 2017, arXiv:1706.02677).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        num_classes: int = 10,
        stem: Stem = "cifar",
        width: int = 64,
        groups: int = 1,
        width_per_group: int = 64,
        conv_bias: bool = False,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem is 'cifar' or 'imagenet', not {stem!r}")
        if block is BasicBlock and (groups, width_per_group) != (1, 64):
            raise ValueError("only networks of bottlenecks have groups and width_per_group")
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False) if large else conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()

        options: dict[str, Any] = {"conv_bias": conv_bias}
        if block is Bottleneck:
            options |= {"groups": groups, "width_per_group": width_per_group}
        self._in_channels = width
        self.layer1 = self._stage(block, width, depths[0], 1, options)
        self.layer2 = self._stage(block, width * 2, depths[1], 2, options)
        self.layer3 = self._stage(block, width * 4, depths[2], 2, options)
        self.layer4 = self._stage(block, width * 8, depths[3], 2, options)
        self.fc = nn.Linear(width * 8 * block.expansion, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.weight)
                elif isinstance(module, Bottleneck):
                    nn.init.zeros_(module.bn3.weight)

    def _stage(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        channels: int,
        depth: int,
        stride: int,
        options: Mapping[str, Any],
    ) -> nn.Sequential:
        blocks = []
        for index in range(depth):
            blocks.append(block(self._in_channels, channels, stride if index == 0 else 1, **options))
            self._in_channels = channels * block.expansion
        return nn.Sequential(*blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def muon_parameters(self) -> Collection[str]:
        # The first convolution is one of them, as in the runs that chose the recipes.
        return {name for name, parameter in self.named_parameters() if parameter.ndim == 4}
