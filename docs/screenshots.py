"""Take the screenshots of the page in this folder, with the shipped weights: python -m docs.screenshots

They show photos that are part of scikit-image and free to use without conditions, and examples of the page, whose
licences are in NOTICE. They show no image of CIFAR-10.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Literal

import skimage.data
from PIL import Image
from playwright.sync_api import Browser, FilePayload, expect

from tests.app.running import process
from tests.page.browsing import browsing, visiting

FOLDER = Path(__file__).parent
PHOTOS = {
    "cat.jpg": skimage.data.chelsea,
    "astronaut.jpg": skimage.data.astronaut,
    "coffee.jpg": skimage.data.coffee,
    "rocket.jpg": skimage.data.rocket,
}


def take(browser: Browser, url: str, name: str, *, width: int, height: int, theme: Literal["light", "dark"]) -> None:
    """Write one PNG: the page with the results of `PHOTOS` and of its own examples."""
    options = {"viewport": {"width": width, "height": height}, "color_scheme": theme, "reduced_motion": "reduce"}
    with visiting(browser, url, **options) as page:
        expect(page.locator("#model")).to_be_visible()
        files = [FilePayload(name=file, mimeType="image/jpeg", buffer=_jpeg(file)) for file in PHOTOS]
        page.set_input_files("#files", files)
        examples = ("rabbit", "truck") if width > 760 else ()  # phones show them on the empty page only
        for example in examples:
            page.get_by_role("button", name=example, exact=True).click()
        expect(page.locator("#count")).to_have_text(f"{len(PHOTOS) + len(examples)} images")
        page.get_by_role("button", name="cat.jpg").click()
        page.evaluate("scrollTo(0, 0)")
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)
        shot = Image.open(io.BytesIO(page.screenshot()))
    shot.convert("RGB").quantize(256, kmeans=4).save(FOLDER / name, optimize=True)


def _jpeg(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTOS[name]()).save(file, "JPEG", quality=92)  # type: ignore[no-untyped-call]
    return file.getvalue()


def main() -> None:
    """Start the service, open the page, and write the screenshots."""
    with tempfile.TemporaryDirectory() as folder, process({"TENFOLD_PORT": "0"}, Path(folder) / "log") as service:
        service.wait_ready()
        url = f"http://127.0.0.1:{service.port}/"
        with browsing() as browser:
            take(browser, url, "page-light.png", width=1280, height=1300, theme="light")
            take(browser, url, "page-dark.png", width=1280, height=1300, theme="dark")
            take(browser, url, "page-phone.png", width=390, height=844, theme="light")
    sys.stdout.write("".join(f"{path.name}: {path.stat().st_size:,} bytes\n" for path in FOLDER.glob("page-*.png")))


if __name__ == "__main__":
    main()
