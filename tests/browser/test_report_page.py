"""The written page in a real browser: Debian's chromium, without a network."""

import json
import re

import numpy as np
import pytest
from playwright.sync_api import expect

from rayad.dashboard import serve
from rayad.evaluation import report, table
from rayad.evaluation.figures import distributions, panel, thumbnail
from rayad.evaluation.metrics import Scored
from rayad.evaluation.results import read
from rayad.evaluation.shown import DetectorMap, View
from tests.browser.conftest import opened, overflow


def cohort():
    generator, tissue, images = np.random.default_rng(0), np.ones((12, 12), dtype=bool), []
    for i in range(14):
        mask = np.zeros((12, 12), dtype=bool)
        mask[3:6, i % 8 : i % 8 + 3] = i >= 7
        scores = generator.normal(size=(12, 12)) + 2 * mask
        images.append(Scored(f"e{i}", f"p{i}", i >= 7, scores, tissue, {"mass": mask} if i >= 7 else {}, 3.2))
    return images


def pictures(images):
    centers = np.arange(4, 96, 8)
    truth = np.repeat(np.repeat(images[9].truth["mass"], 8, axis=0), 8, axis=1)
    view = View("e9", np.full((96, 96), 0.4, dtype=np.float32), 0.4, centers, centers, truth)
    found = DetectorMap(np.clip(images[9].scores / 4, 0, 1), images[9].scores > 2)
    places = {"healthy": images[0].scores.ravel(), "mass": images[9].scores[images[9].truth["mass"]]}
    return {
        "panel": panel([view], {"cae": [found]}),
        "distributions": distributions({"cae": places}),
        "image-e9": thumbnail(view, found),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of a small cohort: its folder and its results."""
    folder, images = tmp_path_factory.mktemp("report"), cohort()
    image = {"exam_id": "e9", "patient_id": "p9", "diseased": True, "lesions": ["mass"], "thumbnail": "image-e9"}
    results = {
        "dataset": "phantom",
        "recipe": "demo",
        "commit": "0123abc",
        "rows": table.rows("cae", images, ["mass", "distortion"], options=table.Options(resamples=100)),
        "comparisons": [],
        "calibration_patients": 24,
        "images": [image | {"p": {"cae": {"image": 0.04, "exam": 0.08}}}],
    }
    report.build(read(results, "results"), pictures(images), str(folder))
    return folder, results


def read_offline(chromium, file, width=1280):
    return opened(chromium, file.as_uri(), width, offline=True)


def test_the_table_has_every_figure_of_results_json(written, chromium):
    folder, results = written
    mass, distortion = results["rows"]
    with read_offline(chromium, folder / "index.html") as page:
        cells = [text.split() for text in page.locator("#main-table td").all_inner_texts()]
        assert distortion["pixel_auc"]["reason"] in page.locator("body").inner_text()
    assert len(cells) == 12
    pixel, image_wise = mass["pixel_auc"], mass["image_wise_auc"]
    assert cells[0] == [f"{pixel['value']:.2f}", f"{pixel['low']:.2f}", "to", f"{pixel['high']:.2f}"]
    assert cells[2][:3] == [f"{image_wise['mean']:.2f}", "±", f"{image_wise['std']:.2f}"]


@pytest.mark.parametrize("width", [1280, 500])
def test_images_load_and_the_page_fits_the_window(written, chromium, width):
    folder, _ = written
    with read_offline(chromium, folder / "index.html", width) as page:
        loaded = page.evaluate(
            "Object.fromEntries([...document.images].map(i => [i.getAttribute('src'), i.naturalWidth]))"
        )
        assert overflow(page) == 0
    assert set(loaded) == {"panel.webp", "distributions.webp", "image-e9.webp"}
    assert all(wide > 100 for wide in loaded.values())


FINDING = {"row_mm": 10.0, "col_mm": 20.0, "size_mm2": 30.0, "score": 4.0, "healthy_quantile": 0.999}
PLACED = FINDING | {"row": 24.5, "col": 49.25, "radius": 8.0}


def to_answer(written, name, findings, **more):
    """A page of two findings, whose file is called so."""
    folder, results = written
    images = [results["images"][0] | {"findings": findings, "more_findings": 0} | more]
    text = report.render(read({**results, "images": images}, "results"), ["panel", "distributions", "image-e9"])
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def saved(page, button):
    with page.expect_download() as download:
        page.locator(button).click()
    return download.value.suggested_filename, download.value.path().read_bytes().decode()


def test_a_reader_rejects_a_finding_exports_it_and_finds_it_again_after_a_reload(written, chromium):
    file = to_answer(written, "reading.html", [PLACED, PLACED])
    with read_offline(chromium, file) as page:
        page.locator(".finding input[value=reject]").first.check()
        page.reload()
        expect(page.locator(".finding input[value=reject]").first).to_be_checked()
        expect(page.locator("#count")).to_have_text("1 of 2 findings answered")
        name, table_of_answers = saved(page, "#export-csv")
        answers = json.loads(saved(page, "#export-json")[1])
    assert name == "readings.csv"
    assert table_of_answers.split("\r\n")[1:] == ["e9,24.5,49.25,8,rejected,,", ""]
    assert [finding["answer"] for finding in answers["findings"]] == ["reject", ""]
    assert answers["findings"][0]["exam_id"] == "e9"


def test_results_without_places_in_px_say_why_there_is_no_table(written, chromium):
    with read_offline(chromium, to_answer(written, "old.html", [FINDING])) as page:
        page.locator(".finding input[value=accept]").check()
        expect(page.locator("#export-csv")).to_be_disabled()
        expect(page.locator("#kept")).to_contain_text("evaluate again")


def test_a_missed_lesion_is_drawn_on_the_picture_and_taken_back(written, chromium):
    file = to_answer(written, "missed.html", [], shape=[480, 960])  # the picture is square: px are not
    with read_offline(chromium, file) as page:
        page.get_by_role("button", name="Mark a missed lesion").press("Enter")
        box = page.locator(".frame svg").bounding_box()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"], steps=4)
        page.mouse.up()
        page.get_by_role("button", name="Mark", exact=True).click()
        expect(page.locator(".missed li")).to_contain_text(
            re.compile(r"row (239|240), column (239|240), radius 1(19|20) px")
        )
        page.get_by_role("button", name="Mark a missed lesion").press("Enter")
        expect(page.locator(".frame circle")).to_have_count(2)
        for key, value in (("Row", "12"), ("Column", "34"), ("Radius", "5.5")):
            page.get_by_label(key, exact=True).fill(value)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="take back missed lesion: row 2").press("Enter")
        assert saved(page, "#export-csv")[1].split("\r\n")[1:] == ["e9,12,34,5.5,accepted,,", ""]
        page.locator("#undo").click()
        expect(page.locator(".missed li")).to_have_count(2)
        page.locator("#undo").click()
        page.locator("#undo").click()
        expect(page.locator(".missed li")).to_have_count(0)
        expect(page.locator("#undo")).to_be_disabled()


def test_leaving_a_report_with_answers_that_were_not_exported_asks(written, chromium):
    with read_offline(chromium, to_answer(written, "leaving.html", [PLACED])) as page:
        asked = []
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
        page.locator(".finding input[value=accept]").check()
        page.reload()
        assert asked == ["beforeunload"]
        page.locator(".finding input[value=reject]").check()
        saved(page, "#export-csv")
        page.reload()
        assert asked == ["beforeunload"]


def test_answers_are_given_in_the_sandbox_of_the_dashboard_too(written, chromium):
    file = to_answer(written, "locked.html", [PLACED], shape=[96, 96])
    with read_offline(chromium, file) as page:
        page.context.set_offline(False)
        policy = {"Content-Security-Policy": serve.REPORT, "Content-Type": "text/html"}
        page.route("http://locked.test/*", lambda route: answer_from(route, file, policy))
        page.goto("http://locked.test/locked.html")
        expect(page.locator("#kept")).to_contain_text("Export your answers before you leave")
        page.locator(".finding input[value=accept]").check()
        page.get_by_role("button", name="Mark a missed lesion").click()
        page.get_by_role("button", name="Mark", exact=True).click()
        lines = saved(page, "#export-csv")[1].split("\r\n")
    assert lines[1:] == ["e9,24.5,49.25,8,accepted,,", "e9,48,48,4.8,accepted,,", ""]


def answer_from(route, file, headers):
    """The page under a policy; its pictures are those beside it."""
    name = route.request.url.rsplit("/", 1)[1]
    if name == file.name:
        route.fulfill(body=file.read_text(encoding="utf-8"), headers=headers)
    else:
        route.fulfill(path=file.parent / name)
