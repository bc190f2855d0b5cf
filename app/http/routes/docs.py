"""The API documentation at `/docs`: Swagger UI, from files of this host."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.files import Files
from app.http.routes.page import FOLDER, HEADERS

router = APIRouter(include_in_schema=False)

# Only the files of Swagger UI are used, because the package's own page has an inline script.
_swagger_ui: Final = Files(Path(str(files("fastapi_swagger") / "resources")))
_own: Final = Files(FOLDER / "docs")
_FILES: Final = {
    "/docs": (_own, "index.html"),
    "/docs/docs.js": (_own, "docs.js"),
    "/docs/swagger-ui-bundle.js": (_swagger_ui, "swagger-ui-bundle.js"),
    "/docs/swagger-ui.css": (_swagger_ui, "swagger-ui.css"),
}


def docs(request: Request) -> Response:
    """The documentation's page, or one of its files."""
    folder, name = _FILES[request.scope["route"].path]
    response = folder.response(name, request)
    response.headers.update(HEADERS)
    return response


for _path in _FILES:
    router.add_api_route(_path, docs)
