"""Networks that are no ResNets, for tests of what may be assumed of a network."""

import torch
from torch import Tensor, nn

from model.nets.base import HeadOutputs, Network, PooledNetwork


class PlainCNN(PooledNetwork):
    """Convolutions with biases and no normalisation, max-pooling, global average pooling, one linear layer."""

    def __init__(self, *, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        return features

    def get_classifier(self) -> nn.Linear:
        return self.classifier


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MixedNetwork(Network):
    """Layers that a ResNet has not, and a head with a hidden layer, which has no class-activation maps.

    Grouped convolution, batch normalisation before its convolution and twice after one, LayerNorm, a linear layer over
    channels, a scale that is a bare parameter, dropout, a convolution in the head.
    """

    def __init__(self, *, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.before = nn.BatchNorm2d(width)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=4, bias=False)
        self.after = nn.BatchNorm2d(width)  # registered after `grouped` and fed by it: to be fused
        self.shared = nn.Conv2d(width, width, 1)
        self.unrelated = nn.BatchNorm2d(width)  # registered after `shared`, but not fed by it alone
        self.norm = LayerNorm2d(width)
        self.mix = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Conv2d(width, 2 * width, 1)
        self.classifier = nn.Linear(2 * width, num_classes)

    @property
    def num_classes(self) -> int:
        return self.classifier.out_features

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.before(self.stem(x))
        x = self.after(self.grouped(x)).relu()
        x = self.shared(x)
        x = self.unrelated(x) + x
        x = x + self.scale * self.mix(self.norm(x).movedim(1, -1)).movedim(-1, 1)
        dropped: Tensor = self.dropout(x)
        return dropped

    def forward_head(self, features: Tensor) -> HeadOutputs:
        pooled = self.hidden(features.mean((2, 3), keepdim=True)).flatten(1).relu()
        return HeadOutputs(self.classifier(pooled), pooled, None)

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def no_weight_decay(self) -> set[str]:
        return {"scale"}
