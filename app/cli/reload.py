"""tenfold reload: other weights for a running service."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from app.cli.classify.results import CommandError, plural

if TYPE_CHECKING:  # at run time, httpx is imported in the functions, because it would slow down --help
    import httpx

_DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_TIMEOUT = 5.0
_REPORT = ("model", "version", "previous", "shadow")


def main(
    weights: Annotated[
        str | None,
        typer.Argument(
            help="Folder of the new bundle, below TENFOLD_WEIGHTS_ROOT of the service, such as weights/NAME. "
            "Default: the present one."
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="Root of the service.")] = _DEFAULT_URL,
    admin_key: Annotated[
        str, typer.Option(envvar="TENFOLD_ADMIN_KEY", help="One of TENFOLD_ADMIN_KEYS of the service.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="Name of the model.  [default: that of the service]")] = None,
    shadow: Annotated[
        float | None, typer.Option(help="Share of the live images that old and new weights are compared on first.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Number of images to compare.  [default: 200]")] = None,
    seconds: Annotated[float | None, typer.Option(help="Longest duration of the comparison.  [default: 600]")] = None,
    agreement: Annotated[
        float | None, typer.Option(help="Smallest share with the same first class.  [default: 0.98]")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Return to the previous weights.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Release the previous weights.")] = False,
) -> None:
    """Replace the weights of a running service, without a restart.

    The command waits until the new weights are served, or are refused. Exit code 1 means that nothing has changed.
    """
    options = {"weights": weights, "shadow": shadow, "images": images, "seconds": seconds, "agreement": agreement}
    order = {name: value for name, value in options.items() if value is not None}
    try:
        if rollback + confirm + bool(order) > 1:
            raise CommandError("--rollback and --confirm take no other option: give one of them alone")
        if shadow is None and order.keys() - {"weights"}:
            raise CommandError("--images, --seconds and --agreement are limits of a comparison: give --shadow too")
        action = "/rollback" if rollback else "/confirm" if confirm else ""
        with _client(url, admin_key) as client:
            name = model or _send(client, "GET", "/models", fields=("default",))["default"]
            report = _send(client, "POST", f"/models/{quote(name, safe='')}{action}", order, fields=_REPORT)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    print(describe(report))


def describe(report: dict[str, Any]) -> str:
    """What has happened, for people.

    Args:
        report: the JSON of the service.
    """
    lines = [f"{report['model']}: version {report['version']} is served"]
    if report["previous"]:
        lines.append(f"version {report['previous']} stays loaded until --confirm; --rollback returns to it")
    if shadow := report["shadow"]:
        sides = (("old", shadow["serving"]), ("new", shadow["candidate"]))
        lines += [f"{plural(shadow['images'], 'image')} compared, the first class agrees on {shadow['agreement']:.2%}"]
        lines += [
            f"{name} weights: mean confidence {side['mean_confidence']:.3f}, {side['accepted']:.1%} accepted"
            for name, side in sides
        ]
    return "\n".join(lines)


def _client(url: str, admin_key: str) -> "httpx.Client":
    import httpx

    from app.cli.classify.wire import open_client

    # A comparison may take long, and the service limits it.
    return open_client(url, admin_key, option="--admin-key", timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT))


def _send(
    client: "httpx.Client", method: str, path: str, order: dict[str, Any] | None = None, *, fields: Sequence[str]
) -> dict[str, Any]:
    """These fields of the JSON of a response with status 200.

    Raises:
        CommandError: the service cannot be reached, has no such route, or does not accept the key; or this is another
            program.
        typer.Exit: it refuses the order, with the reason on standard error.
    """
    import httpx

    from app.cli.classify.wire import describe_transport_error, problem_detail, problem_slug

    try:
        response = client.request(method, path, json=order)
    except httpx.UnsupportedProtocol as error:
        raise CommandError(f"{client.base_url!s} is not a valid URL: give --url as http://HOST:PORT") from error
    except httpx.HTTPError as error:
        reason = describe_transport_error(error)
        raise CommandError(f"the service at {client.base_url} cannot be reached ({reason}): give its --url") from error
    detail = problem_detail(response)
    if response.status_code == 401:
        if "X-API-Key" in client.headers:
            raise CommandError(f"the service at {client.base_url} does not accept this key: give another --admin-key")
        raise CommandError(f"the service at {client.base_url} requires an admin key: give one with --admin-key")
    missing = response.status_code in (404, 405)
    if missing and not problem_slug(response):
        raise _not_tenfold(client)
    if method == "POST" and missing and problem_slug(response) != "unknown-model":
        raise CommandError(f"the service at {client.base_url} has no admin keys: set TENFOLD_ADMIN_KEYS and restart it")
    if response.status_code in (409, 422, 503):
        print(f"not changed: {detail}", file=sys.stderr)
        raise typer.Exit(1)
    if response.status_code != 200:
        raise CommandError(f"the service at {client.base_url} responded with status {response.status_code}: {detail}")
    try:
        content = response.json()
        return {name: content[name] for name in fields}
    except (ValueError, KeyError, TypeError) as error:
        raise _not_tenfold(client) from error


def _not_tenfold(client: "httpx.Client") -> CommandError:
    return CommandError(f"{client.base_url.host} is not a Tenfold service: choose another --url")
