"""The page with models of few and of many classes, trained on folders of images."""

from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

import model
from model.training.overrides import changed
from model.training.recipes import recipe_named
from model.training.run import train_bundle
from tests.app.fakes import image_file
from tests.app.running import serving
from tests.model.training.data.images import write_classes
from tests.page.browsing import add, show_all_classes, visiting


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 100 classes."""
    place = tmp_path_factory.mktemp("many")
    images = write_classes(place / "images", [f"class number {number}" for number in range(100)], 3)
    recipe = changed(recipe_named("smoke").lasting(1), ["sizes=[]"])
    train_bundle(recipe, data=f"folder:{images}", run=place, out=place / "many", device="cpu", cache=place / "cache")
    return place / "many"


def test_ten_of_many_classes_are_ranked(many: Path, browser: Browser) -> None:
    with (
        serving(load=partial(model.load, many), name="many") as service,
        visiting(browser, f"{service.client.base_url}/") as page,
    ):
        expect(page.locator("#classes li")).to_have_count(25)
        expect(page.locator("#classes")).to_contain_text("and 76 others")
        add(page, ("a.png", image_file(1)))
        expect(page.locator(".ranking li")).to_have_count(10)
        show_all_classes(page)
        expect(page.get_by_text("The ten most probable of 100 classes.")).to_be_visible()
        page.locator(".ranking button").nth(1).click()
        expect(page.locator("#heat-bar")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_two_classes_are_ranked(folder_bundle: Path, browser: Browser) -> None:
    with (
        serving(load=partial(model.load, folder_bundle), name=folder_bundle.name) as service,
        visiting(browser, f"{service.client.base_url}/") as page,
    ):
        add(page, ("a.png", image_file(1)))
        expect(page.locator(".ranking li")).to_have_count(2)
        expect(page.locator("#samples")).to_be_hidden()  # they show none of its classes
        for label in ("bunte Kühe", "猫 | cat"):
            page.locator(".ranking").get_by_text(label).click()
            expect(page.locator("#heat-bar")).to_contain_text(label)
