import gzip
import html.parser
import re

import pytest

from app.http.routes.page import FOLDER, POLICY
from tests.app.http.test_problems import is_a_problem
from tests.app.running import ROOT, Running, serving

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpg": "image/jpeg",
    "txt": "text/plain; charset=utf-8",
}
FILES = sorted(FOLDER.glob("*.*"))
PATHS = ["/", *(f"/static/{path.name}" for path in FILES)]
DOCS = ["/docs", "/docs/docs.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"]


class Inline(html.parser.HTMLParser):
    """What a page holds that a strict policy forbids, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forbidden: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in names):
            self.forbidden.append(tag)
        self.forbidden += [name for name in names if name == "style" or name.startswith("on")]
        self.links += [value for name in ("src", "href") if (value := names.get(name))]


def test_the_page_is_served_at_the_root(running: Running) -> None:
    response = running.client.get("/")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == TYPES["html"]
    assert response.content == (ROOT / "app/static/index.html").read_bytes()


@pytest.mark.parametrize("path", PATHS + DOCS)
def test_each_file_has_its_type_its_policy_and_an_etag(running: Running, path: str) -> None:
    response = running.client.get(path)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == TYPES[path.rpartition(".")[2] if "." in path else "html"]
    assert response.headers["Content-Security-Policy"] == POLICY
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert re.fullmatch(r'"[0-9a-f]{32}(-gzip)?"', response.headers["ETag"])
    head = running.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == response.headers["Content-Length"]


@pytest.mark.parametrize("path", PATHS + DOCS)
def test_a_file_is_compressed_for_clients_that_accept_it(running: Running, path: str) -> None:
    plain = running.client.get(path, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["Content-Length"] == str(len(plain.content))
    response = running.client.get(path, headers={"Accept-Encoding": "br, gzip"})
    assert response.content == plain.content
    if path.endswith((".png", ".jpg")):
        assert "Content-Encoding" not in response.headers
        return
    assert response.headers["Content-Encoding"] == "gzip"
    for each in (response, plain):
        assert set(each.headers["Vary"].split(", ")) == {"Accept-Encoding"}
    assert response.headers["ETag"] != plain.headers["ETag"]


def test_the_policy_allows_nothing_from_other_hosts() -> None:
    assert POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}'])
def test_a_file_that_the_browser_has_is_not_sent_again(running: Running, form: str) -> None:
    for encoding in ("gzip", "identity"):
        accept = {"Accept-Encoding": encoding}
        tag = running.client.get("/static/page.js", headers=accept).headers["ETag"]
        response = running.client.get("/static/page.js", headers={**accept, "If-None-Match": form.format(tag)})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == tag
        assert response.headers["Vary"] == "Accept-Encoding"
        assert "Content-Encoding" not in response.headers


def test_another_version_of_a_file_is_sent(running: Running) -> None:
    response = running.client.get("/static/page.js", headers={"If-None-Match": '"0123456789abcdef"'})
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/static/", "/static/nothing.js", "/static/..%2Fmain.py", "/static/../main.py"])
def test_other_files_are_not_served(running: Running, path: str) -> None:
    is_a_problem(running.client.get(path), 404)


def test_the_page_needs_no_key() -> None:
    with serving(api_keys=("key",)) as service:
        assert service.client.get("/model").status_code == 401
        for path in PATHS + DOCS:
            assert service.client.get(path).status_code == 200


def test_the_page_is_served_before_the_model_is_loaded() -> None:
    def load() -> None:
        raise OSError("no such weights")

    with serving(load=load, wait_ready=False) as service:  # type: ignore[arg-type]
        assert service.client.get("/").status_code == 200


def test_the_page_is_small_when_compressed() -> None:
    assert {path.suffix.removeprefix(".") for path in FILES} == set(TYPES)
    sizes = {path: len(gzip.compress(path.read_bytes())) for path in FILES}
    examples = {path for path in FILES if path.suffix in {".jpg", ".txt"}}  # with a licence
    assert sum(size for path, size in sizes.items() if path not in examples) < 75_000
    assert sum(path.stat().st_size for path in examples if path.suffix == ".jpg") < 150_000


def test_every_example_has_a_source_and_a_licence_in_the_notice() -> None:
    notice = (ROOT / "NOTICE").read_text()
    names = re.findall(r"^- (\w+\.jpg): .*\((?:CC|GPL|public domain)", notice, re.MULTILINE)
    assert sorted(names) == sorted(path.name for path in FILES if path.suffix == ".jpg")


@pytest.mark.parametrize("path", ["index.html", "docs/index.html"])
def test_nothing_is_inline_and_every_link_is_relative(path: str) -> None:
    page = Inline((FOLDER / path).read_text())
    assert page.forbidden == []
    assert page.links
    assert not [link for link in page.links if re.match(r"/|\w+:", link)]


def test_scripts_import_and_name_no_other_host() -> None:
    for path in FOLDER.rglob("*.js"):
        text = path.read_text()
        assert all(found.startswith("./") for found in re.findall(r'from "(.*?)"', text)), path
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), path
