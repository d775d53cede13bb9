"""Each slider that a notebook left in its page moves its picture, by mouse and by keyboard."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page


def state(scrubber: Locator) -> tuple[str, ...]:
    """What the scrubber shows: the place in its sheet, and the words beside its sliders."""
    picture = scrubber.locator("[role=img]")
    place = picture.evaluate("(e) => getComputedStyle(e).backgroundPosition")
    return (place, *scrubber.locator("output").all_inner_texts())


def ready(scrubber: Locator) -> None:
    """Bring it near, and wait for its sheet."""
    scrubber.scroll_into_view_if_needed()
    picture = scrubber.locator("[role=img]").element_handle()
    scrubber.page.wait_for_function(
        """(e) => {
          const sheet = new Image();
          sheet.src = getComputedStyle(e).backgroundImage.slice(5, -2);
          return sheet.complete && sheet.naturalWidth > 0;
        }""",
        arg=picture,
    )


def test_the_book_has_sliders(site):
    texts = [p.read_text(encoding="utf-8") for p in site.folder.glob("notebooks/*.html")]
    assert sum(text.count('class="dl-scrub"') for text in texts) >= 4


def test_every_slider_moves_its_picture(opened: Page):
    for scrubber in opened.locator(".dl-scrub").all():
        ready(scrubber)
        picture = scrubber.locator("[role=img]")
        for slider in scrubber.locator("input[type=range]").all():
            assert slider.get_attribute("aria-label")
            last = int(slider.get_attribute("max"))

            # By keyboard: first, last, one back.
            slider.focus()
            slider.press("Home")
            assert slider.evaluate("(e) => getComputedStyle(e).outlineStyle") != "none"
            first, first_pixels = state(scrubber), picture.screenshot()
            slider.press("End")
            assert state(scrubber) != first
            assert picture.screenshot() != first_pixels, "the picture did not change"
            at_end = state(scrubber)
            slider.press("ArrowLeft")
            assert state(scrubber) != at_end
            assert slider.input_value() == str(last - 1)
            assert (
                slider.get_attribute("aria-valuetext")
                in scrubber.locator("output").all_inner_texts()
            )

            # By mouse: press near the left end, pull to the right one.
            box = slider.bounding_box()
            y = box["y"] + box["height"] / 2
            opened.mouse.move(box["x"] + 6, y)
            opened.mouse.down()
            assert slider.input_value() == "0"
            assert state(scrubber) == first
            opened.mouse.move(box["x"] + box["width"] - 3, y, steps=4)
            opened.mouse.up()
            assert slider.input_value() == str(last)
            assert state(scrubber) == at_end


def test_sheets_wait_until_they_are_near(opened: Page):
    tops = opened.locator(".dl-scrub").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().top + scrollY)"
    )
    far = bool(tops) and min(tops) > 3000
    assert far or "/05_sampling" not in opened.url  # so that one page is looked at
    if far:
        assert not any("/sheet-" in url for url in opened.first_load)


@pytest.mark.allow(r"failed request: .*/_static/scripts/")  # preloaded, and never run
def test_pictures_without_scripts(site, new_page: Callable[..., Page]):
    """Without JavaScript a slider can't move, but its first picture is there."""
    page = new_page(java_script_enabled=False)
    page.goto(site.url("notebooks/05_sampling"))
    images = page.locator(".dl-scrub [role=img]")
    assert images.count() >= 1
    assert re.search(r"/_images/sheet-\w+\.webp", images.first.get_attribute("style"))
    assert "/sheet-" in " ".join(page.watch.requests)


def test_from_a_folder(from_folder: Page):
    """The first of each page, the same from file://, where a page may load less."""
    for scrubber in from_folder.locator(".dl-scrub").all()[:1]:
        ready(scrubber)
        slider = scrubber.locator("input[type=range]").first
        slider.press("Home")
        before = scrubber.locator("[role=img]").screenshot()
        slider.press("End")
        assert scrubber.locator("[role=img]").screenshot() != before
