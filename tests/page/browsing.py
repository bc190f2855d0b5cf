"""Helpers of the page's tests: the browser, the page, and mocked responses of POST /explain."""

import base64
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urljoin

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    FilePayload,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from model import Verdict
from tests.app.fakes import CARD, LABELS, image_file

EXPLAIN = "**/explain?*"
# The browser logs this for failed requests and for responses with status 4xx or 5xx.
_NETWORK_ERROR = "Failed to load resource"
_RECORD_VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


def chromium() -> str | None:
    """Path of Chromium, if it is installed. The headless shell needs half the CPU time of the whole browser."""
    return next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Start a browser; skips the test if Chromium is not installed."""
    path = chromium()
    if not path:
        pytest.skip("no Chromium: install it to test the page")
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def browsing_with_camera(browser: Browser, *, allowed: bool) -> Iterator[Browser]:
    """Start another browser like `browser`, with a camera that pages may use or not.

    A flag answers the question for permission, because the headless shell cannot ask.
    """
    answer = "--use-fake-ui-for-media-stream" + ("" if allowed else "=deny")
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", answer]
    with browser.browser_type.launch(executable_path=chromium(), args=flags) as other:
        yield other


class Tab:
    """A tab that records errors, violations of the page's policy and requests to other origins.

    Attributes:
        page: Playwright's page.
    """

    def __init__(self, context: BrowserContext) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.add_init_script(_RECORD_VIOLATIONS)
        self.page.on("pageerror", lambda error: self._errors.append(str(error)))
        self.page.on("console", lambda message: self._errors.extend([message.text] * (message.type == "error")))
        self.page.on("request", lambda request: self._requests.append(request.url))
        self.page.on("dialog", lambda dialog: dialog.accept())  # the question before leaving with results
        self._errors: list[str] = []
        self._requests: list[str] = []

    def open(self, url: str) -> None:
        """Load the page at `url` and start new records."""
        self._errors.clear()
        self._requests.clear()
        self._own = (urljoin(url, "/"), "blob:", "data:")
        self.page.goto(url)

    def check(self) -> None:
        """Assert that nothing was recorded."""
        assert self.page.evaluate("violations") == []
        assert [error for error in self._errors if not error.startswith(_NETWORK_ERROR)] == []
        assert [url for url in self._requests if not url.startswith(self._own)] == []

    def leave(self) -> None:
        """Remove the routes of the last test and leave its page."""
        self.page.unroute_all()
        self.page.goto("about:blank")


@contextlib.contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open the page at `url` in a context of its own; `Tab.check` at the end."""
    with browser.new_context(**options) as context:
        tab = Tab(context)
        tab.open(url)
        yield tab.page
        tab.check()


def add(page: Page, *files: tuple[str, bytes], kind: str = "image/png") -> None:
    """Choose files, as with the file dialogue."""
    page.set_input_files("#files", [FilePayload(name=name, mimeType=kind, buffer=data) for name, data in files])


def headline(page: Page) -> Locator:
    """The heading of the result."""
    return page.locator("#headline")


def show_all_classes(page: Page) -> None:
    """Show the classes after the first three."""
    page.get_by_text("Show all ten").click()


def show_curl(page: Page) -> None:
    """Open the code of a request, for curl."""
    page.get_by_text("As JSON, or as code").click()
    page.get_by_role("button", name="curl", exact=True).click()


def explanation(
    ranking: Sequence[tuple[str, float]] = (("cat", 0.9), ("dog", 0.06)),
    *,
    label: str = "",
    peak: tuple[int, int] = (0, 0),
    warnings: Sequence[str] = (),
    in_distribution: float = 0.6,
    verdict: Verdict = "accepted",
    box: Sequence[float] = (50, 0, 350, 300),
) -> dict[str, Any]:
    """A response of POST /explain for an image of 400 x 300 pixels, in two views.

    Args:
        ranking: the top classes with their probabilities. The other classes share the rest equally.
        label: the explained class; the top class by default.
        peak: row and column of the maximum of the map, which has 4 x 4 cells.
        warnings: of the result.
        in_distribution: of the result.
        verdict: of the result.
        box: of the first view.
    """
    ranked = [label for label, _ in ranking]
    rest = (1 - sum(probability for _, probability in ranking)) / (len(LABELS) - len(ranking))
    probabilities = [*ranking, *((label, rest) for label in LABELS if label not in ranked)]
    cells = [[3.0 if (row, column) == peak else -0.5 for column in range(4)] for row in range(4)]
    pixels = "data:image/png;base64," + base64.b64encode(image_file(7)).decode()
    chosen = label or probabilities[0][0]
    return {
        "model": {"name": CARD.name, "version": CARD.version},
        "result": {
            "filename": None,
            "width": 400,
            "height": 300,
            "top_k": [
                {"label": label, "index": LABELS.index(label), "probability": round(probability, 6)}
                for label, probability in probabilities
            ],
            "in_distribution": in_distribution,
            "verdict": verdict,
            "accepted": verdict == "accepted",
            "views": 2,
            "warnings": list(warnings),
        },
        "label": chosen,
        "index": LABELS.index(chosen),
        "probability": dict(probabilities)[chosen],
        "method": "class activation map (Zhou et al. 2016)",
        "views": [
            {"box": list(box), "input": pixels, "map": cells, "weight": 2 / 3, "maps": None},
            {"box": [0, 0, 400, 300], "input": pixels, "map": cells, "weight": 1 / 3, "maps": None},
        ],
    }


def succeed(route: Route, body: dict[str, Any] | None = None) -> None:
    """Respond as POST /explain does."""
    timing = "decode;dur=4.0, queue;dur=1.0, inference;dur=12.0, total;dur=20.0"
    route.fulfill(json=body or explanation(), headers={"Server-Timing": timing})


def fail(route: Route, status: int, slug: str, detail: str, *, retry_after: int = 0) -> None:
    """Respond with a problem."""
    headers = {"Content-Type": "application/problem+json"} | ({"Retry-After": str(retry_after)} if retry_after else {})
    problem = {"type": f"urn:tenfold:{slug}", "title": "A title", "status": status, "detail": detail, "instance": "a"}
    route.fulfill(status=status, headers=headers, body=json.dumps(problem))


def mock_explain(page: Page, reply: Callable[[Route], None] = succeed) -> list[Request]:
    """Handle POST /explain with `reply` from now on; returns the list of requests, which grows."""
    requests: list[Request] = []

    def handle(route: Route) -> None:
        requests.append(route.request)
        reply(route)

    page.unroute(EXPLAIN)
    page.route(EXPLAIN, handle)
    return requests


def wait_until(page: Page, condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Wait for a condition that events of the page fulfil; Playwright dispatches them during its own calls only."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds:g} s: {what}"
        page.wait_for_timeout(10)


def pause_clock(page: Page) -> None:
    """Reload the page with a clock that `page.clock.run_for` alone advances."""
    page.clock.install(time=0)
    page.reload()
    page.clock.pause_at(3_600)
