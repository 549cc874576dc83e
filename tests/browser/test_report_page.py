"""The written page in a real browser: Debian's chromium, without a network."""

import numpy as np
import pytest
from playwright.sync_api import expect

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


def test_a_reader_rejects_a_finding_exports_it_and_finds_it_again_after_a_reload(written, chromium):
    folder, results = written
    finding = {"row_mm": 10.0, "col_mm": 20.0, "size_mm2": 30.0, "score": 4.0, "healthy_quantile": 0.999}
    images = [results["images"][0] | {"findings": [finding, finding], "more_findings": 0}]
    text = report.render(read({**results, "images": images}, "results"), ["panel", "distributions", "image-e9"])
    (folder / "reading.html").write_text(text, encoding="utf-8")
    with read_offline(chromium, folder / "reading.html") as page:
        page.locator(".finding input[value=reject]").first.check()
        page.reload()
        expect(page.locator(".finding input[value=reject]").first).to_be_checked()
        expect(page.locator("#count")).to_have_text("1 of 2 findings answered")
        with page.expect_download() as download:
            page.locator("#export-csv").click()
        table_of_answers = download.value.path().read_text(encoding="utf-8")
    assert '"e9","1"' in table_of_answers
    assert '"reject"' in table_of_answers
