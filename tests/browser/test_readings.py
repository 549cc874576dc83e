"""A reader's answers in the viewer: what is accepted, rejected, drawn and taken back, and the table that leaves it."""

import csv
import io
from contextlib import contextmanager

import numpy as np
import pytest
from playwright.sync_api import expect

from rayad import tables
from rayad.datasets import labels
from tests.browser.test_viewer import opened, press, scored

COLUMNS = ["image", "row", "col", "radius", "reading", "detector", "sha256"]
SHA256 = "0123456789abcdef" * 4
ROWS, COLS = 512, 384


@pytest.fixture
def page(chromium, server):
    with opened(chromium, server) as page:
        yield page


def saved(page):
    """The bytes of the table that the viewer saves."""
    with page.expect_download() as got:
        page.get_by_role("button", name="Save readings").click()
    assert got.value.suggested_filename == "readings.csv"
    return got.value.path().read_bytes()


def rows(data):
    return list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))


@contextmanager
def canvas_of(page):
    """A function that gives the point of the screen where a row and a column of the image at 1:1 are."""
    press(page, "fz")
    box = page.locator(".pane canvas").bounding_box()
    yield lambda row, col: (box["x"] + box["width"] / 2 + col - COLS / 2, box["y"] + box["height"] / 2 + row - ROWS / 2)


def drag(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


def test_findings_are_answered_by_keys_and_by_buttons_and_leave_as_circles_of_their_area(page, server):
    found = server.answers["context-spn"].described["findings"]
    scored(page)
    press(page, "1y")
    expect(page.get_by_role("button", name="accept finding 1")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="reject finding 2").press("Enter")
    expect(page.get_by_role("button", name="reject finding 2")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#answered")).to_have_text("2 answers, 1 image, not saved yet")
    data = saved(page)
    expect(page.locator("#answered")).to_have_text("2 answers, 1 image")
    step_px, spacing_mm = 8, 0.4
    for row, finding, reading in zip(rows(data), found, ("accepted", "rejected"), strict=False):
        assert list(row) == COLUMNS
        assert (row["image"], row["reading"], row["detector"]) == ("one.png", reading, "context-spn")
        assert (float(row["row"]), float(row["col"])) == (finding["row"], finding["column"])
        area = np.pi * (float(row["radius"]) * spacing_mm) ** 2
        assert area == pytest.approx(max(finding["size_mm2"], np.pi * (step_px * spacing_mm) ** 2), rel=0.01)
        assert row["sha256"] == SHA256


def test_an_answer_is_changed_taken_back_and_undone(page):
    scored(page)
    accept, reject = (page.get_by_role("button", name=f"{word} finding 1") for word in ("accept", "reject"))
    undo = page.get_by_role("button", name="Undo")
    expect(undo).to_be_disabled()
    accept.click()
    reject.click()
    expect(accept).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#answered")).to_contain_text("1 answer, 1 image")
    press(page, ["x"])
    expect(reject).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("button", name="Save readings")).to_be_disabled()
    press(page, ["Backspace"])
    expect(reject).to_have_attribute("aria-pressed", "true")
    press(page, ["Backspace"])
    expect(accept).to_have_attribute("aria-pressed", "true")
    undo.click()
    expect(accept).to_have_attribute("aria-pressed", "false")
    expect(undo).to_be_disabled()
    expect(page.locator("#answered")).to_be_empty()


def test_a_missed_lesion_is_drawn_by_the_pointer(page):
    scored(page)
    with canvas_of(page) as at:
        press(page, ["g"])
        expect(page.get_by_role("button", name="Mark missed")).to_have_attribute("aria-pressed", "true")
        drag(page, at(250.5, 120.5), at(250.5, 150.5))
        expect(page.locator("#drawn li")).to_have_count(1)
        press(page, ["Escape"])
        expect(page.get_by_role("button", name="Mark missed")).to_have_attribute("aria-pressed", "false")
        drag(page, at(250, 120), at(240, 120))
        expect(page.locator("#drawn li")).to_have_count(1)
    (row,) = rows(saved(page))
    assert [float(row[name]) for name in COLUMNS[1:4]] == pytest.approx([250, 120, 30], abs=1)
    assert row["reading"] == "accepted"


def test_a_missed_lesion_is_drawn_by_keys_and_taken_back(page):
    scored(page)
    press(page, ["f", "z", "g", "Shift+ArrowDown", "Enter", ">", ">", ">", ">", "Shift+ArrowLeft", "Enter"])
    expect(page.locator("#drawn li")).to_have_count(2)
    one, two = rows(saved(page))
    assert float(one["row"]) == pytest.approx(ROWS / 2 - 0.5 + 4, abs=0.01)
    assert float(two["col"]) == pytest.approx(COLS / 2 - 0.5 - 4, abs=0.01)
    assert float(two["radius"]) == pytest.approx(2 * float(one["radius"]), rel=0.01)
    page.get_by_role("button", name="take back missed lesion 1").press("Enter")
    assert rows(saved(page)) == [two]
    press(page, ["Escape", "Backspace"])
    expect(page.locator("#drawn li")).to_have_count(2)


def test_two_fingers_zoom_and_draw_nothing(chromium, server):
    with opened(chromium, server, has_touch=True) as page:
        scored(page)
        press(page, "zg")
        percent = page.locator(".pane .top.right").inner_text()
        box = page.locator(".pane canvas").bounding_box()
        fingers = page.context.new_cdp_session(page)
        for kind, points in (
            ("touchStart", [(400, 300)]),
            ("touchStart", [(400, 300), (460, 300)]),
            ("touchMove", [(370, 300), (490, 300)]),
            ("touchEnd", []),
        ):
            points = [{"x": box["x"] + x, "y": box["y"] + y, "id": i} for i, (x, y) in enumerate(points)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        expect(page.locator(".pane .top.right")).not_to_have_text(percent, use_inner_text=True)
        expect(page.locator("#drawn li")).to_have_count(0)


def test_nothing_is_drawn_outside_of_the_image(page):
    scored(page)
    with canvas_of(page) as at:
        press(page, ["g"])
        drag(page, at(100, -40), at(100, -20))
    expect(page.locator("#status")).to_have_text("That is outside the image.")
    expect(page.locator("#drawn li")).to_have_count(0)


def test_answers_outlive_their_image_and_another_scoring_but_not_the_page(page, server):
    scored(page, "a.png", "b.png")
    press(page, ["1", "y", "PageDown", "1", "x"])
    expect(page.locator("#answered")).to_contain_text("2 answers, 2 images")
    page.get_by_role("button", name="Score again").click()
    expect(page.get_by_role("button", name="reject finding 1")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="close b.png").click()
    expect(page.get_by_role("button", name="accept finding 1")).to_have_attribute("aria-pressed", "true")
    assert [row["image"] for row in rows(saved(page))] == ["a.png", "b.png"]
    kept = page.evaluate("() => JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie")
    assert ".png" not in kept
    page.reload()
    expect(page.locator("#answered")).to_be_empty()


def test_leaving_the_viewer_with_answers_that_were_not_saved_asks(page):
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    scored(page)
    press(page, "1y")
    page.reload()
    assert asked == ["beforeunload"]
    scored(page)
    press(page, "1y")
    saved(page)
    page.reload()
    assert asked == ["beforeunload"]


def test_answers_are_of_the_detector_that_is_looked_at(page, server):
    server.answers["top-hat"].described["findings"] = server.answers["context-spn"].described["findings"]
    scored(page)
    page.locator("#choose-1").check()
    expect(page.locator("#show-1")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#findings li")).not_to_have_count(0)
    press(page, "1xd")
    expect(page.get_by_role("button", name="reject finding 1")).to_have_attribute("aria-pressed", "false")
    press(page, "y")
    expect(page.get_by_role("button", name="accept finding 1")).to_have_attribute("aria-pressed", "false")
    press(page, "1y")
    assert [(row["detector"], row["reading"]) for row in rows(saved(page))] == [
        ("top-hat", "rejected"),
        ("context-spn", "accepted"),
    ]


NAMES = ["plain.png", 'a,b "c".png', "=1+1.png", "-2.png", "+3.png", "@x.png", "zwölf\tß.png", "x\r\ny.png", "a;b.png"]


def test_the_table_is_read_by_csv_and_by_rayads_own_tables_and_no_cell_begins_like_a_formula(page, tmp_path):
    given = [
        {"image": name, "row": 1 / 3, "col": 1e-9, "radius": 20, "reading": "accepted", "detector": f"={name}"}
        for name in NAMES
    ]
    text = page.evaluate(
        "async (rows) => (await import('/web/readings.js')).csv(rows.map((row) => ({ ...row, sha256: '' })))", given
    )
    file = tmp_path / "readings.csv"
    file.write_bytes(text.encode())
    assert text.startswith(",".join(COLUMNS) + "\r\n")
    by_csv = rows(text.encode())
    assert [row["image"].removeprefix("./") for row in by_csv] == NAMES
    assert {(row["row"], row["col"], row["radius"]) for row in by_csv} == {("0.33", "0", "20")}
    assert not [cell for row in by_csv for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    header, cells, separator = tables.cells(str(file))
    assert (header, separator) == (COLUMNS, ",")
    assert cells == [[cell.strip() for cell in row.values()] for row in by_csv]
    table = labels.read(str(file), NAMES)
    assert set(table) == set(NAMES)
    assert labels.facts(NAMES[2], table[NAMES[2]], {}).lesions[0].circle == (0.33, 0.0, 20.0)


def test_hostile_names_stay_text_and_one_cell(page):
    hostile = '<img src="x" onerror="document.title=1">.png'
    scored(page, hostile)
    press(page, ["1", "y", "g", "Enter"])
    expect(page.locator("#drawn li")).to_have_count(1)
    assert [row["image"] for row in rows(saved(page))] == [hostile] * 2
    assert page.locator("img").count() == 0
