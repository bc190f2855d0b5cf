"""Whether a server gives the right answers: only then do its figures count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.payloads import Encoding, Payload, body_of, png_of, small_pngs
from benchmarks.serving.peers.network import load_network
from benchmarks.serving.servers import Running
from model import Classifier, DataError, preprocess
from model.bundle import open_bundle
from model.engines.torch import TorchEngine
from model.training.data import load_cifar10_test

LIMIT = 0.02
"""Share of the small pictures that may get another class: bfloat16 decides near ties otherwise."""

_MAX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Expected:
    """What float32 says.

    Attributes:
        small: small pictures.
        labels: of each of them.
        large: one large picture.
        label: of it.
    """

    small: Payload
    labels: Sequence[str]
    large: Payload
    label: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a server's answers compare with that.

    Attributes:
        asked: small pictures.
        other: how many of them got another class.
        large: what the large picture is said to be, by encoding, where it is another class.
    """

    asked: int
    other: int
    large: Mapping[Encoding, str]

    @property
    def holds(self) -> bool:
        """Whether the server may be measured."""
        return self.other <= LIMIT * self.asked and not self.large

    def complaint(self, name: str) -> str:
        """What is wrong, in a sentence."""
        large = "".join(f", and of the large picture ({encoding})" for encoding in self.large)
        return (
            f"{name} disagrees with float32 on {self.other} of {self.asked} small pictures{large}: its figures would "
            "not count, so it is not measured"
        )


def reference_pictures(data: Path, count: int) -> Payload:
    """The first pictures of CIFAR-10's test set, or drawn ones where it is not there."""
    try:
        pixels = load_cifar10_test(data).pixels[:count].numpy()
    except DataError:
        return small_pngs(count, seed=1)
    return Payload("png", "image/png", [png_of(picture) for picture in pixels])


def expected(weights: Path, small: Payload, large: Payload) -> Expected:
    """The reference: the service's own preprocessing, and the network in float32 on the CPU."""
    bundle = open_bundle(weights)
    spec = bundle.card.input
    classifier = Classifier(bundle.card, TorchEngine(load_network(bundle), spec, device="cpu", precision="float32"))
    labels = []
    for file in (*small.files, *large.files):
        (prediction,) = classifier.classify([preprocess(file, spec, max_pixels=_MAX_PIXELS).pixels])
        labels.append(prediction.top_k(1)[0].label)
    return Expected(small, labels[:-1], large, labels[-1])


def compare(running: Running, right: Expected) -> Agreement:
    """Ask a server about all of them.

    Raises:
        ServerError: it does not answer.
    """
    encodings = running.server.encodings
    answers = [running.ask(body).label for body in right.small.bodies(encodings[0])]
    large = {
        encoding: label
        for encoding in encodings
        if (label := running.ask(body_of(right.large.files[0], right.large.mime, encoding)).label) != right.label
    }
    return Agreement(len(answers), sum(map(str.__ne__, answers, right.labels)), large)
