"""POST /predict from the caller's side: a request's body, and what an answer says."""

import uuid
from collections.abc import Sequence
from typing import Any

import httpx

from app.cli.classify.results import Result, Unusable

File = tuple[str, bytes]
"""A file's path and its bytes."""

_FIELDS = ("width", "height", "top_k", "in_distribution", "accepted", "views", "warnings")


def request_of(files: Sequence[File]) -> tuple[bytes, str]:
    """Body and content type: one picture as it is, several as multipart/form-data.

    Made here, because httpx takes longer to make it than the service to answer it. Names stay at home: answers come in
    the order of the files.
    """
    if len(files) == 1:
        return files[0][1], "application/octet-stream"
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\n\r\n'.encode()
    parts = [part for _, data in files for part in (head, data, b"\r\n")]
    return b"".join((*parts, f"--{boundary}--\r\n".encode())), f"multipart/form-data; boundary={boundary}"


def results_in(response: httpx.Response, files: Sequence[File]) -> list[Result]:
    """The results in an answer of status 200.

    Raises:
        Unusable: it is not one of Tenfold's.
    """
    try:
        said = response.json()
        return [
            _result(path, element, said["model"]) for (path, _), element in zip(files, said["results"], strict=True)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"{response.url.host} does not answer as Tenfold does: give another --url") from error


def _result(path: str, element: dict[str, Any], model: dict[str, str]) -> Result:
    if "problem" in element:
        return Result(path, {}, error=str(element["problem"]["detail"]))
    return Result(path, {name: element[name] for name in _FIELDS}, model)


def detail_of(response: httpx.Response) -> str:
    """What a refusal says."""
    return str(_problem(response).get("detail") or response.reason_phrase or "no reason given")


def slug_of(response: httpx.Response) -> str:
    """The kind of a refusal, as in its type: "queue-full"."""
    return str(_problem(response).get("type", "")).removeprefix("urn:tenfold:")


def retry_after(response: httpx.Response) -> float | None:
    """Seconds after which to ask again, if it says so."""
    said = response.headers.get("Retry-After", "")
    return float(said) if said.isdecimal() else None


def cause_of(error: httpx.HTTPError) -> str:
    """Why there is no answer."""
    return str(error) or type(error).__name__


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
