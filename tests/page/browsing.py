"""The page in a real browser: what a test does with it, and answers of POST /explain made to order."""

import base64
import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Locator, Page, Request, Route, expect, sync_playwright

from tests.app.fakes import CARD, LABELS, picture

FILE = "**/explain?*"
# What the browser itself writes about an answer of 4xx or 5xx, or none.
_OF_THE_NETWORK = "Failed to load resource"
_WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


def chromium() -> str | None:
    """Where Chromium is."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A browser."""
    path = chromium()
    if not path:
        pytest.skip("no Chromium: install it to test the page")
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page at `url`, which at the end has written no error, met its policy and asked nobody else for anything."""
    errors: list[str] = []
    strangers: list[str] = []
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(_WATCH)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.extend([message.text] if message.type == "error" else []))
        page.on("request", lambda request: strangers.extend([] if _is_own(request, url) else [request.url]))
        page.goto(url)
        yield page
        assert page.evaluate("violations") == []
    assert [error for error in errors if not error.startswith(_OF_THE_NETWORK)] == []
    assert strangers == []


def _is_own(request: Request, url: str) -> bool:
    return request.url.startswith((url, "blob:", "data:"))


def add(page: Page, *files: tuple[str, bytes], kind: str = "image/png") -> None:
    """Pick files, as the dialogue of the browser would."""
    page.set_input_files("#files", [FilePayload(name=name, mimeType=kind, buffer=data) for name, data in files])


def verdict(page: Page) -> Locator:
    """The heading of the answer."""
    return page.locator("#verdict")


def explanation(
    ranking: Sequence[tuple[str, float]] = (("cat", 0.9), ("dog", 0.06)),
    *,
    label: str = "",
    peak: tuple[int, int] = (0, 0),
    warnings: Sequence[str] = (),
    in_distribution: float = 0.6,
    accepted: bool = True,
    box: Sequence[float] = (50, 0, 350, 300),
) -> dict[str, Any]:
    """An answer of POST /explain for a picture of 400 x 300 pixels, in two views.

    Args:
        ranking: the likeliest classes; the others get equal shares of what is left.
        label: the class that is explained; the likeliest if not given.
        peak: row and column of the cell that adds most, of 4 x 4.
        warnings: of the result.
        in_distribution: of the result.
        accepted: of the result.
        box: of the first view.
    """
    named = [label for label, _ in ranking]
    left = (1 - sum(share for _, share in ranking)) / (len(LABELS) - len(ranking))
    shares = [*ranking, *((label, left) for label in LABELS if label not in named)]
    cells = [[3.0 if (row, column) == peak else -0.5 for column in range(4)] for row in range(4)]
    seen = "data:image/png;base64," + base64.b64encode(picture(7)).decode()
    chosen = label or shares[0][0]
    return {
        "model": {"name": CARD.name, "version": CARD.version},
        "result": {
            "filename": None,
            "width": 400,
            "height": 300,
            "top_k": [
                {"label": label, "index": LABELS.index(label), "probability": round(share, 6)}
                for label, share in shares
            ],
            "in_distribution": in_distribution,
            "accepted": accepted,
            "views": 2,
            "warnings": list(warnings),
        },
        "label": chosen,
        "index": LABELS.index(chosen),
        "probability": dict(shares)[chosen],
        "method": "class activation map (Zhou et al. 2016)",
        "views": [
            {"box": list(box), "input": seen, "map": cells},
            {"box": [0, 0, 400, 300], "input": seen, "map": cells},
        ],
    }


def answer(route: Route, body: dict[str, Any] | None = None) -> None:
    """Answer a request as POST /explain does."""
    timing = "decode;dur=4.0, queue;dur=1.0, inference;dur=12.0, total;dur=20.0"
    route.fulfill(json=body or explanation(), headers={"Server-Timing": timing})


def refuse(route: Route, status: int, slug: str, detail: str, *, retry_after: int = 0) -> None:
    """Answer a request with a problem."""
    headers = {"Content-Type": "application/problem+json"} | ({"Retry-After": str(retry_after)} if retry_after else {})
    problem = {"type": f"urn:tenfold:{slug}", "title": "A title", "status": status, "detail": detail, "instance": "a"}
    route.fulfill(status=status, headers=headers, body=json.dumps(problem))


def answering(page: Page, reply: Callable[[Route], None] = answer) -> list[Request]:
    """Answer POST /explain by `reply` from now on; the requests are listed."""
    requests: list[Request] = []

    def handle(route: Route) -> None:
        requests.append(route.request)
        reply(route)

    page.unroute(FILE)
    page.route(FILE, handle)
    return requests
