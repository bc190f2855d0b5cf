"""kserve's REST client in a process of its own: kserve_client.py URL NAME FILE FORMS.

FILE is an NPZ file with `pixels`, uint8[N, S, S, 3], and `files`, N encoded images. What the client returns is printed
as JSON: the index of the class of each image in each of the FORMS, separated by commas, and whether the probes succeed.
"""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

_BATCH = 32


async def main(url: str, name: str, path: str, forms: str) -> None:
    """Talk to the service at `url`."""
    data = np.load(path, allow_pickle=True)
    pixels, files = data["pixels"], data["files"].reshape(-1, 1)
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:
        found = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "models": [await client.is_model_ready(url, each) for each in (name, f"{name}-image", "dog")],
        }
        inputs = {
            "json": (name, "pixels", "UINT8", pixels),
            "binary": (name, "pixels", "UINT8", pixels),
            "fp32": (name, "pixels", "FP32", pixels.astype(np.float32)),
            "files": (f"{name}-image", "image", "BYTES", files),
        }
        for form in forms.split(","):
            found[form] = await classify(client, url, *inputs[form], binary=form != "json")
        try:
            await classify(client, url, name, "image", "BYTES", files[:1], binary=True)
        except httpx.HTTPStatusError as error:
            found["error"] = str(error)
    print(json.dumps(found))


async def classify(
    client: InferenceRESTClient, url: str, model: str, name: str, datatype: str, data: np.ndarray, *, binary: bool
) -> list[int]:
    """The most probable class of each image, from requests with `_BATCH` images."""
    indices: list[int] = []
    for start in range(0, len(data), _BATCH):
        part = data[start : start + _BATCH]
        given = InferInput(name, list(part.shape), datatype)
        given.set_data_from_numpy(part, binary_data=binary)
        # Without an ID of the client, kserve requires the one that the service makes.
        parameters = {"binary_data_output": binary}
        response = await client.infer(url, InferRequest(model, [given], parameters=parameters), model_name=model)
        assert response.id
        outputs = {output.name: output.as_numpy() for output in response.outputs}
        indices += outputs["probabilities"].argmax(axis=1).tolist()
    return indices


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
