"""Images that hang side by side in the viewer: two breasts, each other's mirror image, back to back."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.test_viewer import give, opened, press, scored, screen
from tests.contract import MIRRORED


@pytest.fixture
def page(chromium, server):
    """Both breasts, hung."""
    with opened(chromium, server) as page:
        scored(page, "one.png")
        give(page, "other.png", content=MIRRORED)
        expect(page.locator("#strip button:not(.close)").nth(1)).to_contain_text("p ")
        expect(page.locator("#status")).to_be_empty()
        press(page, "vm")
        expect(page.locator(".pane")).to_have_count(2)
        yield page


def middle(picture):
    """What no corner, scale bar or border covers."""
    rows, columns = picture.shape[:2]
    return picture[rows // 4 : -rows // 4, columns // 4 : -columns // 4]


def mirror_images(page):
    left, right = (middle(screen(page, pane)) for pane in (0, 1))
    assert left.std() > 10
    return np.abs(left - right[:, ::-1]).mean() < 4  # of 255: a heatmap's place may end a pixel aside


def walls(page):
    """Where the first and the last column of tissue are, as shares of each pane's width."""
    found = []
    for pane in (0, 1):
        bright = (screen(page, pane).max(2) > 60).mean(0)
        found.append(np.average(np.arange(len(bright)), weights=bright) / len(bright))
    return found


def score(page, pane):
    readout = page.locator(".pane output").nth(pane)
    expect(readout).to_contain_text("score")
    return re.search(r"score \S+", readout.inner_text())[0]


def test_breasts_hang_back_to_back_and_are_looked_at_together(page):
    left, right = walls(page)
    assert left > 0.5 > right  # both chest walls are in the middle
    assert mirror_images(page)
    press(page, "+++")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert mirror_images(page)
    press(page, "f")
    assert mirror_images(page)


def test_the_cursor_reads_the_same_place_of_both(page):
    current = page.locator(".pane.active canvas")
    press(page, "1")
    assert score(page, 0) == score(page, 1)
    read = page.locator(".pane.active output").inner_text()
    box = current.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
    expect(page.locator(".pane.active output")).not_to_have_text(read, use_inner_text=True)
    assert score(page, 0) == score(page, 1)  # panes are painted together; this is no border of two places


def test_who_clicks_the_other_image_looks_at_it_and_nothing_moves(page):
    press(page, "++")
    before = [middle(screen(page, pane)) for pane in (0, 1)]
    name = page.locator("#strip [aria-current=true] .name").inner_text()
    box = page.locator(".pane:not(.active) canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    expect(page.locator("#strip [aria-current=true] .name")).not_to_have_text(name)
    after = [middle(screen(page, pane)) for pane in (0, 1)]
    for one, two in zip(before, after, strict=True):
        assert np.abs(one - two).mean() < 4


def test_what_both_say_together_is_told_and_they_are_taken_down_again(page, server):
    expect(page.locator("#together")).to_contain_text("If all 2 images are of one patient, together: p")
    press(page, "c")
    expect(page.locator("#together")).to_have_count(0)
    expect(page.locator(".pane")).to_have_count(1)
    press(page, "v")
    expect(page.locator(".pane")).to_have_count(2)
    page.keyboard.press("Delete")
    expect(page.locator(".pane")).to_have_count(1)
    expect(page.locator("#together")).to_have_count(0)
