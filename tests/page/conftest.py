"""Fixtures of the page's tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.app.running import Running, serving
from tests.page.browsing import Tab, browsing, visiting


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A browser. Package scope: its event loop must end before other tests start theirs."""
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service with the default limits, shared by the tests of a module, which must not change it."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Tab]:
    """A desktop window, shared by the tests of a module."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield Tab(context)


@pytest.fixture
def page(tab: Tab, running: Running) -> Iterator[Page]:
    """The page, loaded again in the shared window: for tests that change nothing else of the browser."""
    tab.open(f"{running.client.base_url}/")
    yield tab.page
    tab.check()
    tab.leave()


@pytest.fixture
def own_page(browser: Browser, running: Running) -> Iterator[Page]:
    """The page in a window of its own: for tests with a clock, permissions, listeners or no network."""
    with visiting(browser, f"{running.client.base_url}/") as page:
        yield page
