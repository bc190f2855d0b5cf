"""The class of 1,000 test images of CIFAR-10 is that of /predict, whatever client and form of the tensors is used."""

import asyncio
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from PIL import Image

import model
from model.training.data import load_cifar10_test
from tests.app.http.oip.test_kserve import talk
from tests.app.http.oip.test_tritonclient import images, pixels
from tests.app.running import ROOT, Running, serving

COUNT = 1_000
BATCH = 32


@dataclass(frozen=True)
class Compared:
    """A service with what it is compared on.

    Attributes:
        running: the service.
        name: of its model.
        pixels: uint8[N, 32, 32, 3].
        files: the same as PNG files.
        predicted: index of the class of each, from /predict.
        margins: difference of the two highest probabilities of each.
    """

    running: Running
    name: str
    pixels: NDArray[np.uint8]
    files: list[bytes]
    predicted: NDArray[np.int64]
    margins: NDArray[np.float64]

    def check(self, classes: list[int]) -> None:
        """Assert that the classes are those of /predict, except where two are equally probable within rounding."""
        different = (np.array(classes) != self.predicted) & (self.margins > 1e-5)
        assert len(classes) == len(self.predicted)
        assert not different.any(), np.flatnonzero(different)


@pytest.fixture(
    scope="module", params=["tiny", pytest.param("shipped", marks=pytest.mark.slow)], ids=["random weights", "shipped"]
)
def compared(request: pytest.FixtureRequest, cifar10_root: Path) -> Iterator[Compared]:
    tiny: Path = request.getfixturevalue("tiny_bundle")
    folder = tiny if request.param == "tiny" else ROOT / "weights/resnet18-cifar10"
    classifier = model.load(folder, device="cpu")
    name = classifier.card.name
    array = load_cifar10_test(cifar10_root).pixels[:COUNT].numpy()
    files = []
    for each in array:
        file = io.BytesIO()
        Image.fromarray(each).save(file, "PNG")
        files.append(file.getvalue())
    with serving(load=lambda: classifier, name=name, timeout=100.0) as running:
        results: list[dict[str, Any]] = []
        for start in range(0, COUNT, BATCH):
            part = [("a.png", file) for file in files[start : start + BATCH]]
            results += running.upload(*part, params={"top_k": 2}).json()["results"]
        top = [result["top_k"] for result in results]
        predicted = np.array([first["index"] for first, _ in top])
        margins = np.array([first["probability"] - second["probability"] for first, second in top])
        yield Compared(running, name, array, files, predicted, margins)


def classes_of(result: triton.InferResult) -> list[int]:
    """The most probable class of each image."""
    found: list[int] = result.as_numpy("probabilities").argmax(axis=1).tolist()
    return found


def in_batches(send: Callable[[int], triton.InferResult]) -> list[int]:
    """The classes from requests for the images from 0, 32, 64 and so on."""
    return [index for start in range(0, COUNT, BATCH) for index in classes_of(send(start))]


@pytest.mark.parametrize(
    ("datatype", "binary"),
    [(np.uint8, True), (np.float32, True), pytest.param(np.uint8, False, marks=pytest.mark.slow)],
)
def test_tritons_client_with_pixels(compared: Compared, datatype: Any, binary: bool) -> None:
    array = compared.pixels.astype(datatype)
    with triton.InferenceServerClient(f"127.0.0.1:{compared.running.port}", network_timeout=100.0) as client:
        compared.check(
            in_batches(lambda start: client.infer(compared.name, [pixels(array[start : start + BATCH], binary=binary)]))
        )


def test_tritons_client_with_images(compared: Compared) -> None:
    name = f"{compared.name}-image"
    with triton.InferenceServerClient(f"127.0.0.1:{compared.running.port}", network_timeout=100.0) as client:
        compared.check(in_batches(lambda start: client.infer(name, [images(*compared.files[start : start + BATCH])])))


def test_tritons_client_in_parallel_with_compression(compared: Compared) -> None:
    url = f"127.0.0.1:{compared.running.port}"
    with triton.InferenceServerClient(url, concurrency=4, network_timeout=100.0) as client:
        pending = [
            client.async_infer(
                compared.name,
                [pixels(compared.pixels[start : start + BATCH])],
                request_compression_algorithm="gzip",
                response_compression_algorithm="deflate",
            )
            for start in range(0, COUNT, BATCH)
        ]
        compared.check([index for handle in pending for index in classes_of(handle.get_result())])


def test_tritons_asynchronous_client(compared: Compared) -> None:
    async def talk_in_order() -> list[int]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{compared.running.port}", conn_timeout=100.0) as client:
            results = [
                await client.infer(compared.name, [pixels(compared.pixels[start : start + BATCH])])
                for start in range(0, COUNT, BATCH)
            ]
            return [index for result in results for index in classes_of(result)]

    compared.check(asyncio.run(talk_in_order()))


def test_kserves_client(compared: Compared, tmp_path: Path) -> None:
    forms = ("binary", "files")
    found = talk(tmp_path, compared.running.port, compared.name, compared.pixels, compared.files, forms)
    for form in forms:
        compared.check(found[form])
