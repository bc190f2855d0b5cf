"""Mosec: a decoding process per core and a process that runs batches, behind its HTTP server in Rust.

Mosec passes only the body to its workers, so the boundary of a multipart body is taken from its first line.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
from mosec import Server, Worker
from numpy.typing import NDArray
from python_multipart import MultipartParser

from benchmarks.serving.peers import network


class Preprocess(Worker):
    """Body -> float32[3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)  # there is one such process per core
        self._spec = network.bundle().card.input
        self._transform = network.transform_of(self._spec)

    def deserialize(self, data: bytes) -> bytes:
        """The image file: the body, or its only part."""
        return _only_part(data) if data.startswith(b"--") else data

    def forward(self, data: bytes) -> NDArray[np.float32]:
        """Decode and apply the test transform."""
        pixels: NDArray[np.float32] = self._transform(network.decode_reduced(data, self._spec)).numpy()
        return pixels


class Inference(Worker):
    """N times float32[3, H, W] -> N predictions."""

    def __init__(self) -> None:
        super().__init__()
        bundle = network.bundle()
        self._card = bundle.card
        self._device = network.best_device()
        self._dtype = network.fast_dtype(self._device)
        self._net = network.load_fast_network(bundle, self._device)

    def forward(self, data: Sequence[NDArray[np.float32]]) -> list[dict[str, str | float]]:
        """One forward pass."""
        batch = torch.from_numpy(np.stack(data))
        with torch.inference_mode():
            logits = self._net(batch.to(self._device, self._dtype, memory_format=torch.channels_last))
        return [
            {"label": self._card.labels[index], "probability": probability}
            for index, probability in network.top1(logits, self._card.calibration)
        ]


def _only_part(body: bytes) -> bytes:
    chunks: list[bytes] = []
    parser = MultipartParser(
        body[2 : body.index(b"\r\n")],
        {"on_part_data": lambda data, start, end: chunks.append(data[start:end])},
    )
    parser.write(body)
    parser.finalize()
    return b"".join(chunks)


if __name__ == "__main__":
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(network.port()), "MOSEC_LOG_LEVEL": "warning"}
    os.environ["MOSEC_TIMEOUT"] = "30000"  # LitServe's default; its own of 3 s would reject large images
    server = Server()
    server.append_worker(Preprocess, num=os.cpu_count() or 1, route="/predict")
    server.append_worker(Inference, max_batch_size=32, max_wait_time=5, route="/predict")
    server.run()
