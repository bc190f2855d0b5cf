"""The API documentation in a real browser, which may load files of the service only."""

from playwright.sync_api import expect

from tests.app.running import Running
from tests.page.browsing import Tab


def test_a_request_can_be_sent_from_the_documentation(tab: Tab, running: Running) -> None:
    tab.open(f"{running.client.base_url}/docs")
    endpoint = tab.page.locator(".opblock", has_text="/livez")
    endpoint.click()
    endpoint.get_by_role("button", name="Try it out").click()
    endpoint.get_by_role("button", name="Execute").click()
    expect(endpoint.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")
    tab.check()
    tab.leave()
