"""The written page in a real browser: Debian's chromium, without a network."""

import os
import re
import subprocess

import numpy as np
import pytest

from rayad.evaluation import report, table
from rayad.evaluation.figures import distributions, panel, thumbnail
from rayad.evaluation.metrics import Scored
from rayad.evaluation.results import read
from rayad.evaluation.shown import DetectorMap, View

CHROMIUM = "/usr/bin/chromium"
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --allow-file-access-from-files"
)
ASK = """<script>addEventListener("load", () => {
  const wide = [...document.images].map(i => i.getAttribute("src") + "=" + i.naturalWidth).join(" ");
  const body = document.documentElement;
  const table = document.getElementById("main-table").getBoundingClientRect();
  document.title = `images ${wide} overflow ${body.scrollWidth - body.clientWidth} table ${Math.round(table.width)}`;
})</script>"""


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


def dom(address, profile, width=1280):
    """The document at an address after loading, as the browser has it."""
    if not os.path.exists(CHROMIUM):
        reason = f"{CHROMIUM} is not there: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    window = f"--user-data-dir={profile}", f"--window-size={width},900", "--virtual-time-budget=5000"
    command = [CHROMIUM, *OPTIONS.split(), *window, "--dump-dom"]
    return subprocess.run([*command, address], capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_table_has_every_figure_of_results_json(written, tmp_path):
    folder, results = written
    document = dom((folder / "index.html").as_uri(), tmp_path)
    main = re.search(r'<table id="main-table">.*?</table>', document, re.DOTALL).group()
    cells = [re.sub(r"<[^>]+>", " ", cell) for cell in re.findall(r"<td>(.*?)</td>", main, re.DOTALL)]
    mass, distortion = results["rows"]
    assert len(cells) == 12
    assert cells[0].split() == [f"{mass['pixel_auc'][key]:.2f}" for key in ("value", "low")] + [
        "to",
        f"{mass['pixel_auc']['high']:.2f}",
    ]
    assert cells[2].split()[:3] == [
        f"{mass['image_wise_auc']['mean']:.2f}",
        "±",
        f"{mass['image_wise_auc']['std']:.2f}",
    ]
    assert distortion["pixel_auc"]["reason"] in document


@pytest.mark.parametrize("width", [1280, 500])
def test_images_load_and_the_page_fits_the_window(written, tmp_path, width):
    folder, _ = written
    asking = folder / f"asking-{width}.html"
    asking.write_text((folder / "index.html").read_text(encoding="utf-8").replace("</body>", f"{ASK}</body>"))
    title = re.search(r"<title>(.*?)</title>", dom(asking.as_uri(), tmp_path, width)).group(1)
    loaded = dict(re.findall(r"(\S+\.webp)=(\d+)", title))
    assert set(loaded) == {"panel.webp", "distributions.webp", "image-e9.webp"}
    assert all(int(wide) > 100 for wide in loaded.values())
    assert " overflow 0 " in title


READ = """<script>addEventListener("load", () => {
  const again = localStorage.getItem("clicked");
  const radio = document.querySelector(".finding input[value=reject]");
  let saved = "";
  URL.createObjectURL = blob => { saved = blob; return "#"; };
  if (!again) { radio.click(); localStorage.setItem("clicked", "yes"); }
  document.getElementById("export-csv").click();
  saved.text().then(csv => {
    const count = document.getElementById("count").textContent;
    document.title = `${again ? "again" : "first"} ${radio.checked} ${count} | ${csv}`;
  });
})</script>"""


def test_a_reader_rejects_a_finding_exports_it_and_finds_it_again_after_a_reload(written, tmp_path):
    folder, results = written
    finding = {"row_mm": 10.0, "col_mm": 20.0, "size_mm2": 30.0, "score": 4.0, "healthy_quantile": 0.999}
    images = [results["images"][0] | {"findings": [finding, finding], "more_findings": 0}]
    text = report.render(read({**results, "images": images}, "results"), ["panel", "distributions", "image-e9"])
    page = folder / "reading.html"
    page.write_text(text.replace("</body>", f"{READ}</body>"), encoding="utf-8")
    for visit in ("first", "again"):
        title = re.search(r"<title>(.*?)</title>", dom(page.as_uri(), tmp_path), re.DOTALL).group(1)
        assert title.startswith(f"{visit} true 1 of 2 findings answered")
        assert '"e9","1"' in title
        assert '"reject"' in title
