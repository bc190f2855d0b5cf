"""The simplest FastAPI server: everything in an async handler, float32, one image at a time."""

import io

import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

from benchmarks.serving.peers import network

bundle = network.bundle()
device = network.best_device()
net = network.load_network(bundle).to(device)
transform = network.transform_of(bundle.card.input)
app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, str | float]:
    """Classify the image in the part `file`."""
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    with torch.no_grad():
        logits = net(transform(image).unsqueeze(0).to(device))
    ((index, probability),) = network.top1(logits, bundle.card.calibration)
    return {"label": bundle.card.labels[index], "probability": probability}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=network.port())
