"""POST /predict as seen by a client: request bodies and responses."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from app.cli.classify.results import CommandError, Result
from app.environment import cleaned

File = tuple[str, bytes]
"""Path and content of a file."""

_FIELDS = ("width", "height", "top_k", "in_distribution", "verdict", "accepted", "views", "warnings")


def open_client(
    url: str,
    key: str | None,
    *,
    option: str,
    timeout: httpx.Timeout,
    params: Mapping[str, str | int | float] | None = None,
) -> httpx.Client:
    """A client of a service.

    Args:
        url: root of the service.
        key: sent with each request.
        option: that names the key, for the error.
        timeout: of each request.
        params: query parameters of each request.

    Raises:
        CommandError: the URL or the key is not valid.
    """
    key = cleaned(key or "")
    try:
        return httpx.Client(
            base_url=httpx.URL(url), params=params, headers={"X-API-Key": key} if key else {}, timeout=timeout
        )
    except httpx.InvalidURL as error:
        raise CommandError(f"{url!r} is not a valid URL ({error}): give --url as http://HOST:PORT") from error
    except UnicodeEncodeError as error:
        raise CommandError(f"a key has ASCII characters only: give another {option}") from error


def encode_request(files: Sequence[File]) -> tuple[bytes, str]:
    """Body and content type of a request: the content of a single file, or multipart/form-data for several.

    httpx takes longer to encode multipart/form-data than the service to process it. File names are not sent: results
    are in the order of the files.
    """
    if len(files) == 1:
        return files[0][1], "application/octet-stream"
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n\r\n'.encode()
    parts = [part for _, data in files for part in (head, data, b"\r\n")]
    return b"".join((*parts, f"--{boundary}--\r\n".encode())), f"multipart/form-data; boundary={boundary}"


def parse_results(response: httpx.Response, files: Sequence[File]) -> list[Result]:
    """The results in a response with status 200.

    Raises:
        CommandError: the response is not one of Tenfold's.
    """
    try:
        content = response.json()
        return [
            _result(path, element, content["model"])
            for (path, _), element in zip(files, content["results"], strict=True)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{response.url.host} is not a Tenfold service: choose another --url") from error


def _result(path: str, element: dict[str, Any], model: dict[str, str]) -> Result:
    if "problem" in element:
        return Result(path, {}, error=str(element["problem"]["detail"]))
    return Result(path, {name: element[name] for name in _FIELDS}, model)


def problem_detail(response: httpx.Response) -> str:
    """The explanation in an error response."""
    return str(_problem(response).get("detail") or response.reason_phrase or "no reason given")


def problem_slug(response: httpx.Response) -> str:
    """The last part of the problem type in an error response, such as "queue-full"."""
    return str(_problem(response).get("type", "")).removeprefix("urn:tenfold:")


def retry_after(response: httpx.Response) -> float | None:
    """Retry-After in seconds, if the response has it."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def describe_transport_error(error: httpx.HTTPError) -> str:
    """The reason why there is no response."""
    return str(error) or type(error).__name__


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
