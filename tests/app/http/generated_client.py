"""Every operation of a generated client: generated_client.py FOLDER URL NAME KEY IMAGE.

FOLDER holds the package `client` of openapi-python-client. NAME is a model, KEY an API key and admin key or empty, and
IMAGE a file. Without a key, no operation of an admin is called. For each call a line is printed: operation, status, and
the type that the client read from the response.
"""

import base64
import importlib
import io
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any


def main(folder: str, url: str, name: str, key: str, path: str) -> None:
    """Call the service at `url`."""
    sys.path.insert(0, folder)
    package: Any = importlib.import_module("client")
    models: Any = importlib.import_module("client.models")
    types: Any = importlib.import_module("client.types")
    client = package.AuthenticatedClient(url, key) if key else package.Client(url)
    operations = {
        module.name.rpartition(".")[2]: importlib.import_module(module.name)
        for module in pkgutil.walk_packages(importlib.import_module("client.api").__path__, "client.api.")
        if not module.ispkg
    }
    image = Path(path).read_bytes()
    text = base64.b64encode(image).decode()

    def call(operation: str, **arguments: Any) -> Any:
        response = operations[operation].sync_detailed(client=client, **arguments)
        print(json.dumps([operation, int(response.status_code), type(response.parsed).__name__]))
        return response

    def file() -> Any:
        return types.File(io.BytesIO(image), "cat.png", "image/png")

    predicted = call("predict", body=file())
    call("predict", body=models.PredictFilesBody([file(), file()]), views=1, x_request_timeout=9.5)
    call("predict", body=models.PredictJsonImageInJson(text), top_k=2)
    call("predict", body=models.PredictJsonImagesInJson([text, models.PredictJsonImagesInJsonBase64(text)]))
    for body in (file(), models.ExplainFilesBody(file()), models.ExplainJsonImageInJson(text)):
        call("explain", body=body)
    call("card", name=name, fields="name,labels")
    call("default_card", fields="metrics.top1")
    request_id = predicted.headers["X-Request-ID"]
    given: dict[str, dict[str, Any]] = {
        "feedback": {"body": models.FeedbackFeedback(request_id, "cat")},
        "swap": {"body": models.SwapSwapRequest()},
    }
    version = {"model_version": str(int(predicted.parsed.model.version, 16))}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    for operation, module in operations.items():
        arguments = given.get(operation, {})
        names = module.sync_detailed.__annotations__
        if operation.endswith("_infer"):
            arguments["body"] = names["body"].__args__[0].from_dict({"inputs": [tensor]})
        for parameter, value in {"name": name, "model_name": f"{name}-image", **version}.items():
            if parameter in names:
                arguments[parameter] = value
        if operation not in ("predict", "explain") and (key or ".admin." not in module.__name__):
            call(operation, **arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
