"""Checks that a server predicts the same classes as the float32 network. Others are not measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.payloads import Encoding, Payload, body_of, png_of, small_pngs
from benchmarks.serving.peers.network import load_network
from benchmarks.serving.servers import RunningServer
from model import Classifier, DataError, preprocess
from model.bundle import open_bundle
from model.engines.torch import TorchEngine
from model.training.data import load_cifar10_test

LIMIT = 0.02
"""Share of the small images that may get another class, since bfloat16 decides near ties differently."""

_MAX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Reference:
    """Images and the classes that the float32 network predicts for them.

    Attributes:
        small: small images.
        labels: the class of each small image.
        large: one large image.
        label: its class.
    """

    small: Payload
    labels: Sequence[str]
    large: Payload
    label: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """Comparison of a server's predictions with the reference.

    Attributes:
        images: number of small images.
        different: how many of them got another class.
        large: the class of the large image by encoding, where it is another one.
    """

    images: int
    different: int
    large: Mapping[Encoding, str]

    @property
    def holds(self) -> bool:
        """Whether the server may be measured."""
        return self.different <= LIMIT * self.images and not self.large

    def message(self, name: str) -> str:
        """The disagreement as a sentence."""
        large = "".join(f", and on the large image ({encoding})" for encoding in self.large)
        return (
            f"{name} disagrees with float32 on {self.different} of {self.images} small images{large}, so "
            "it is not measured"
        )


def reference_images(data: Path, count: int) -> Payload:
    """The first images of the CIFAR-10 test set, or generated ones without it."""
    try:
        pixels = load_cifar10_test(data).pixels[:count].numpy()
    except DataError:
        return small_pngs(count, seed=1)
    return Payload("png", "image/png", [png_of(image) for image in pixels])


def compute_reference(weights: Path, small: Payload, large: Payload) -> Reference:
    """Predict with Tenfold's preprocessing and the float32 network on the CPU."""
    bundle = open_bundle(weights)
    spec = bundle.card.input
    classifier = Classifier(bundle.card, TorchEngine(load_network(bundle), spec, device="cpu", precision="float32"))
    labels = []
    for file in (*small.files, *large.files):
        (prediction,) = classifier.classify([preprocess(file, spec, max_pixels=_MAX_PIXELS).pixels])
        labels.append(prediction.top_k(1)[0].label)
    return Reference(small, labels[:-1], large, labels[-1])


def compare(running: RunningServer, reference: Reference) -> Agreement:
    """Send all images to a server.

    Raises:
        ServerError: it does not respond.
    """
    encodings = running.server.encodings
    labels = [running.predict(body).label for body in reference.small.bodies(encodings[0])]
    large = {
        encoding: label
        for encoding in encodings
        if (label := running.predict(body_of(reference.large.files[0], reference.large.mime, encoding)).label)
        != reference.label
    }
    return Agreement(len(labels), sum(map(str.__ne__, labels, reference.labels)), large)
