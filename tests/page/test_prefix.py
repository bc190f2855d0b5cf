"""The page and the documentation behind a proxy that ends TLS, below a path prefix."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.app.fakes import image_file
from tests.app.proxies import PREFIX, proxied
from tests.app.running import serving
from tests.page.browsing import Tab, add, headline, show_curl


@pytest.mark.parametrize(
    ("program", "keeps"), [("nginx", False), pytest.param("haproxy", True, marks=pytest.mark.slow)]
)
def test_the_page_works_below_a_prefix(browser: Browser, tmp_path: Path, program: str, keeps: bool) -> None:
    with (
        serving(feedback=tmp_path / "feedback", root_path=PREFIX if keeps else "") as service,
        proxied(program, service.port, tmp_path, keeps=keeps) as url,
        browser.new_context(ignore_https_errors=True) as context,
    ):
        tab = Tab(context)
        requests: list[str] = []
        tab.page.on("request", lambda request: requests.append(request.url))
        tab.open(url.rstrip("/"))
        assert tab.page.url == url
        with tab.page.expect_response("**/explain?*") as answered:
            add(tab.page, ("cat.png", image_file()))
        expect(headline(tab.page)).to_be_visible()
        assert answered.value.status == 200
        show_curl(tab.page)
        expect(tab.page.locator("#command")).to_contain_text(f"{url}predict")
        tab.open(f"{url}docs/")
        assert tab.page.url == f"{url}docs"
        endpoint = tab.page.locator(".opblock", has_text="/livez")
        endpoint.click()
        endpoint.get_by_role("button", name="Try it out").click()
        endpoint.get_by_role("button", name="Execute").click()
        expect(endpoint.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")
        tab.check()
        ours = [address for address in requests if not address.startswith(("blob:", "data:"))]
        assert f"{url}livez" in ours
        assert [address for address in ours if not f"{address}/".startswith(url)] == []
