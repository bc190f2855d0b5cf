"""Fixtures of the page's tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.app.running import Running, serving
from tests.page.browsing import browsing, visiting


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A browser; of the package, because its event loop must have ended before other tests start theirs."""
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service with the default limits, shared by the tests of a module: leave nothing changed in it."""
    with serving() as running:
        yield running


@pytest.fixture
def page(browser: Browser, running: Running) -> Iterator[Page]:
    """The page, at the width of a desk."""
    with visiting(browser, f"{running.client.base_url}/", viewport={"width": 1280, "height": 900}) as page:
        yield page
