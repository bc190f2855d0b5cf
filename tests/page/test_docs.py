"""The API documentation in a real browser, which may load files of the service only."""

from playwright.sync_api import FilePayload, Locator, Page, expect

from tests.app.fakes import CARD, image_file
from tests.app.running import Running
from tests.page.browsing import Tab, wait_until


def send(page: Page, method: str, path: str, *, name: str = "", file: bytes = b"") -> Locator:
    """Send the request of an endpoint as it is prepared; returns the table with its response."""
    endpoint = page.locator(f'.opblock-{method}:has([data-path="{path}"])')
    endpoint.locator(".opblock-summary-control").click()
    endpoint.get_by_role("button", name="Try it out").click()
    if name:
        endpoint.get_by_placeholder("name").fill(name)
    if file:
        if endpoint.get_by_role("button", name="Add").count():
            endpoint.get_by_role("button", name="Add").first.click()
        payload = FilePayload(name="a.png", mimeType="image/png", buffer=file)
        endpoint.locator('input[type="file"]').first.set_input_files(payload)
    endpoint.get_by_role("button", name="Execute").click()
    return endpoint.locator(".live-responses-table")


def test_requests_can_be_sent_from_the_documentation(tab: Tab, running: Running) -> None:
    tab.open(f"{running.client.base_url}/docs")
    page = tab.page
    for path in ("/livez", "/readyz", "/models", "/model", "/drift", "/metrics"):
        expect(send(page, "get", path).locator("tbody .response-col_status").first).to_contain_text("200")
    card = send(page, "get", "/models/{name}", name=CARD.name)
    expect(card.locator("tbody .response-col_status").first).to_contain_text("200")
    for path in ("/predict", "/explain"):
        table = send(page, "post", path, file=image_file())
        expect(table.locator("tbody .response-col_status").first).to_contain_text("200")
    tab.check()
    tab.leave()


def test_the_protocol_is_last_the_schemas_are_folded_and_the_theme_is_that_of_the_browser(
    tab: Tab, running: Running
) -> None:
    page = tab.page
    page.emulate_media(color_scheme="dark")
    tab.open(f"{running.client.base_url}/docs")
    expect(page.locator(".opblock-tag")).to_have_count(6)
    names = page.locator(".opblock-tag").evaluate_all("all => all.map((e) => e.dataset.tag)")
    assert names == ["predict", "explain", "models", "metrics", "health", "open inference protocol"]
    summary = page.locator('.opblock:has([data-path="/predict"]) .opblock-summary-description')
    expect(summary).to_have_text("Classify one image or several")
    expect(page.locator(".models")).to_be_visible()
    expect(page.locator(".models .json-schema-2020-12")).to_have_count(0)
    background = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate(background) == "rgb(28, 32, 34)"
    page.emulate_media(color_scheme="light")
    wait_until(page, lambda: page.evaluate(background) != "rgb(28, 32, 34)", "the light theme")
    tab.check()
    tab.leave()
