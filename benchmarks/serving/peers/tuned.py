"""FastAPI tuned without batching: threads, bfloat16, channels last, JPEGs decoded at reduced scale, no access log."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, UploadFile

from benchmarks.serving.peers import network

# One thread per request and as many concurrent requests as cores. The default of forty threads would oversubscribe.
torch.set_num_threads(1)

bundle = network.bundle()
device = network.best_device()
dtype = network.fast_dtype(device)
net = network.load_fast_network(bundle, device)
transform = network.transform_of(bundle.card.input)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Limit the number of threads that run handlers."""
    current_default_thread_limiter().total_tokens = os.cpu_count() or 1
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, str | float]:
    """Classify the image in the part `file`, in a thread."""
    image = network.decode_reduced(file.file.read(), bundle.card.input)
    batch = transform(image).unsqueeze(0).to(device, dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        logits = net(batch)
    ((index, probability),) = network.top1(logits, bundle.card.calibration)
    return {"label": bundle.card.labels[index], "probability": probability}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=network.port(), access_log=False)
