"""LitServe with batching, and decoding in a thread pool in `batch` as its guide to faster serving recommends."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import litserve
import torch
from fastapi import Request
from torch import Tensor

from benchmarks.serving.peers import network


class ResNetAPI(litserve.LitAPI):
    """The network with LitServe's hooks."""

    def setup(self, device: str) -> None:
        """Load the network in the inference worker."""
        bundle = network.bundle()
        self._card = bundle.card
        self._device = torch.device(device)
        self._dtype = network.fast_dtype(self._device)
        self._net = network.load_fast_network(bundle, self._device)
        self._transform = network.transform_of(bundle.card.input)
        self._decoders = ThreadPoolExecutor(os.cpu_count())

    def decode_request(self, request: Request) -> bytes:
        """The file in the part `file`. The annotation makes LitServe parse the form, which is what `request` is."""
        data: bytes = request["file"].file.read()
        return data

    def batch(self, inputs: Sequence[bytes]) -> Tensor:
        """Decode the files in parallel: float[N, 3, H, W]."""
        return torch.stack(list(self._decoders.map(self._pixels, inputs)))

    def predict(self, batch: Tensor) -> Tensor:
        """One forward pass: logits[N, C]."""
        with torch.inference_mode():
            logits: Tensor = self._net(batch.to(self._device, self._dtype, memory_format=torch.channels_last))
            return logits

    def unbatch(self, logits: Tensor) -> list[tuple[int, float]]:
        """Class index and probability of each image."""
        return network.top1(logits, self._card.calibration)

    def encode_response(self, output: tuple[int, float]) -> dict[str, str | float]:
        """A prediction as JSON."""
        index, probability = output
        return {"label": self._card.labels[index], "probability": probability}

    def _pixels(self, data: bytes) -> Tensor:
        pixels: Tensor = self._transform(network.decode_reduced(data, self._card.input))
        return pixels


if __name__ == "__main__":
    api = ResNetAPI(max_batch_size=32, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="auto")
    server.run(
        host="127.0.0.1", port=network.port(), log_level="warning", generate_client_file=False, num_api_servers=1
    )
