"""The page and results.json: complete, escaped, self-contained."""

import copy
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from rayad import storage
from rayad.errors import FormatError
from rayad.evaluation import report
from rayad.evaluation.report import number, p_value, rebuild
from rayad.evaluation.results import SCHEMA, read


def png(brightness: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (brightness,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png(10)


def cell(value=0.734, low=0.612, high=0.853, **more):
    return {"value": value, "low": low, "high": high, **more}


def mean(value=12.34, std=4.56):
    return {"mean": value, "std": std, "low": value - 2, "high": value + 2, "images": 9}


def row(detector="cae", lesion="mass", **changes):
    figures = {
        name: cell() for name in ("pixel_auc", "pixel_auc_with_healthy", "exam_auc", "best_dice", "dice", "aupro")
    }
    figures |= {name: cell(prevalence=0.017) for name in ("pixel_ap", "exam_ap")}
    figures |= {"image_wise_auc": mean(0.81, 0.09)}
    figures |= {f"{d}_{u}": mean() for d in ("hausdorff", "hd95", "surface_distance") for u in ("px", "mm")}
    counts = {"images": 9, "patients": 8, "images_without_place": 1, "images_outside_tissue": 2, "healthy_images": 20}
    froc = {"lesions": 9, "images": 29, "sensitivity": {"0.25": cell(0.111), "8": cell(0.999)}}
    return {"detector": detector, "lesion": lesion, **counts, **figures, "empty_masks": 0, "froc": froc} | changes


def results(**changes):
    comparison = {
        "a": "cae", "b": "cae-spn", "lesion": "mass", "figure": "pixel_auc", "test": "bootstrap", "difference": -0.123,
        "low": -0.2, "high": -0.05, "p": 0.004, "p_holm": 0.012, "floor": 0.0002, "patients": 8, "note": "",
    }  # fmt: skip
    image = {
        "exam_id": "mdb024",
        "patient_id": "p12",
        "diseased": True,
        "lesions": ["mass"],
        "thumbnail": "image-mdb024",
    }
    return {
        "dataset": "mias", "recipe": "mias-quick", "commit": "0123abc", "rows": [row(), row("cae-spn")],
        "comparisons": [comparison], "calibration_patients": 24,
        "images": [image | {"p": {"cae-spn": {"image": 0.04, "exam": 0.08}}}],
        "counts": {"train": {"images": 48, "patients": 24}}, "settings": {"grid": "8 px"},
        "provenance": {"corpus sha256": "9f2c01", "seed": 7, "torch": "2.13.0"}, "notes": ["Films of one hospital."],
        "failures": [{"exam_id": "mdb999", "reason": "truncated"}],
    } | changes  # fmt: skip


def build(content: dict, figures: dict[str, bytes], url: str) -> str:
    return report.build(read(content, "results.json"), figures, url)


def render(content: dict, figures: list[str]) -> str:
    return report.render(read(content, "results.json"), figures)


FIGURES = {"panel": png(50), "distributions": png(120), "image-mdb024": png(200)}


class Page(HTMLParser):
    """The tags, attributes and words of a page, and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(changed=None, figures=tuple(FIGURES)):
    return Page(render(results() if changed is None else changed, list(figures)))


def test_the_page_says_every_figure_of_the_table_with_its_interval():
    text = page().text
    for said in ("0.73 0.61 to 0.85", "0.81 ± 0.09", "12.3 ± 4.6 10.3 to 14.3", "(0.017)", "0.11", "cae-spn"):
        assert said in text


def test_the_page_closes_its_tags_and_shows_every_picture_once():
    parsed = page()
    assert parsed.open == []
    sources = [attributes["src"] for tag, attributes in parsed.tags if tag == "img"]
    assert sorted(sources) == sorted(f"{name}.webp" for name in FIGURES)
    assert all(attributes["alt"] for tag, attributes in parsed.tags if tag == "img")


def test_the_page_explains_p_values_with_their_floor_and_its_limits():
    text = page().text
    for said in (
        "K = 24 healthy patients stand behind every p-value",
        "1/(K + 1) = 0.04",
        "not the probability of disease",
        "not a medical device",
        "Films of one hospital.",
        "mdb999: truncated",
        "from 48 images of 24 healthy patients",
        "1 more have no annotated place",
        "in 2 more the lesion lies outside the tissue found",
    ):
        assert said in text


def test_the_page_names_where_it_comes_from():
    text = page().text
    for said in ("0123abc", "mias-quick", "corpus sha256 9f2c01", "seed 7", "torch 2.13.0", "grid 8 px"):
        assert said in text


def test_comparisons_show_both_p_values():
    assert "cae − cae-spn mass pixel AUC bootstrap -0.123 -0.200 to -0.050 0.004 0.012 0.0002 8" in page().text  # noqa: RUF001


def test_a_missing_figure_is_a_dash_with_its_reason():
    reason = "AUROC needs both classes, got 0 anomalous and 12 normal"
    null = {"value": None, "low": None, "high": None, "reason": reason}
    parsed = page(results(rows=[row(exam_auc=null, froc={"sensitivity": None, "reason": reason})]))
    assert parsed.text.count(reason) == 1
    assert "– 1" in parsed.text  # noqa: RUF001
    assert ("a", {"href": "#reason-1"}) in parsed.tags
    assert ("li", {"id": "reason-1"}) in parsed.tags


def test_the_least_that_results_may_hold_is_a_page():
    least = {key: results()[key] for key in ("dataset", "recipe", "commit")} | {"rows": [], "comparisons": []}
    parsed = page(least, [])
    assert parsed.open == []
    assert "Scores were not calibrated" in parsed.text


def test_text_from_files_is_escaped():
    evil = "<script>alert(1)</script>"
    text = render(results(notes=[evil], failures=[{"url": evil, "reason": evil}], dataset=evil), list(FIGURES))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4


def test_the_page_needs_nothing_from_elsewhere():
    text = render(results(), list(FIGURES))
    assert not re.search(r"https?:|//|@import|<script|<link|url\(", text)


def test_build_writes_the_page_the_numbers_and_the_pictures(tmp_path):
    url = storage.join(str(tmp_path), "report")
    assert build(results(), FIGURES, url) == storage.join(url, "index.html")
    written = json.loads((tmp_path / "report/results.json").read_text())
    assert {k: written[k] for k in results()} == results()
    assert (tmp_path / "report/index.html").read_text(encoding="utf-8") == render(results(), list(FIGURES))
    for name, picture in FIGURES.items():
        files = tmp_path / f"report/{name}.webp", io.BytesIO(picture)
        shown = [np.asarray(Image.open(file).convert("L")) for file in files]
        assert shown[0] == pytest.approx(shown[1], abs=2)


def test_the_page_is_made_again_from_the_results_alone(tmp_path):
    build(results(), FIGURES, str(tmp_path / "one"))
    storage.write_bytes(str(tmp_path / "two/results.json"), (tmp_path / "one/results.json").read_bytes())
    rebuild(str(tmp_path / "two"))
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len(names) == 5
    assert names == sorted(file.name for file in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    with pytest.raises(FormatError, match=r"no results\.json here"):
        rebuild(str(tmp_path / "nothing"))


FULL = {
    "groups": {"cae": "Reconstruction", "cae-spn": "Likelihood", "gmm": "Likelihood"},
    "costs": {d: {"train_minutes": 3.21, "score_seconds": 0.456} for d in ("cae", "cae-spn", "gmm")},
    "literature": [
        {"detector": "CAE", "lesion": "mass", "dataset": "DDSM", "pixel_auc": "0.53-0.80", "source": "a paper"}
    ],
    "group_rows": [
        {"detector": "cae", "lesion": "mass", "group": "dense", "images": 4, "patients": 4}
        | {"pixel_auc": cell(), "image_wise_auc": mean(0.8, 0.1)}
    ],
    "group_tests": [
        {"detector": "cae", "lesion": "mass", "a": "dense", "b": "not dense", "difference": -0.1, "p": 0.3}
    ],
    "seeds": [
        {"detector": "cae", "lesion": "mass", "seeds": 3}
        | {f"{figure}_auc": {"mean": 0.8768, "std": 0.0123, "values": [0.7, 0.8]} for figure in ("pixel", "image_wise")}
        | {"exam_auc": {"mean": 0.5, "std": None, "values": [0.5]}}
        | {"image_auc": {"mean": None, "std": None, "values": []}}
    ],
    "verdicts": [
        {"detector": "cae", "rule": "mean + 2 sd", "images": 20, "balanced_accuracy": 0.71, "f1": 0.61}
        | {"sensitivity": cell(0.66), "specificity": cell(0.77)}
    ],
    "ranks": {"mass": {"ranks": {"cae": 1.2, "cae-spn": 2.0, "gmm": 2.8}, "p": 0.03, "alike": [["cae", "cae-spn"]]}
              | {"patients": 8}},
    "row_provenance": {
        "cae": {"recipe": "r", "commit": "0123456789abc", "corpus": "c0ffee", "seed": 7, "machine": "Zen"}
        | {"versions": {"torch": "2"}}
    },
}  # fmt: skip


def test_a_full_benchmark_shows_all_its_sections():
    text = render(results(rows=[row(), row("cae-spn"), row("gmm")], **FULL), list(FIGURES))
    table = "Reconstruction", "3.2", "0.46", "0.53-0.80", "not of mias"
    sections = "not dense", "0.877", "± 0.012", "mean + 2 sd", "Friedman p 0.03"
    for said in (*table, *sections, "0123456789", "c0ffee", "Zen"):
        assert said in text, said
    assert text.count("<svg") == 3  # two forest plots, one diagram of ranks
    assert text.count('class="group"') == 2


@pytest.mark.parametrize(("p", "marked"), [(0.0, True), (0.0099, True), (0.01, False), (1.0, False), (None, False)])
def test_their_table_stands_beside_ours_with_a_mark_where_ours_is_significantly_better(p, marked):
    theirs = {"lesion": "mass", "dataset": "CBIS-DDSM", "pixel_auc": 0.8, "source": "Dietrichstein et al. 2022"}
    pair = {"a": "cae-spn", "b": "cae", "figure": "image_wise_auc", "difference": 0.1, "p": p}
    literature = [theirs | {"detector": name} for name in ("cae", "cae-spn")]
    html = render(results(literature=literature, comparisons=[results()["comparisons"][0] | pair]), list(FIGURES))
    assert "&lt;/" not in html
    table = html[html.index('id="beside"') :].split("</table>")[0]
    assert table.count("<td>0.80</td>") == 2
    assert ["0.09</span> *" in line for line in re.findall("<tr>.*</tr>", table)[1:]] == [False, marked]


def test_a_remark_stands_once_in_the_row_of_its_detector():
    rows = [row(lesion=kind) for kind in ("mass", "calcification")]
    remarks = {"cae": "beside preset=paper: padding=valid (same)"}
    html = render(results(rows=rows, remarks=remarks), list(FIGURES))
    assert html.count("beside preset=paper: padding=valid (same)") == 1


def test_findings_bring_the_readers_controls_and_their_script():
    finding = {"row_mm": 10.0, "col_mm": 20.0, "size_mm2": 30.0, "score": 4.0, "healthy_quantile": 0.999}
    image = results()["images"][0] | {"findings": [finding, finding], "more_findings": 3}
    text = render(results(images=[image]), list(FIGURES))
    assert text.count('type="radio"') == 6
    assert "and 3 more marked regions" in text
    assert text.count("<script>") == 1


def test_names_are_text_where_a_reader_answers_and_its_script_is_the_only_one():
    evil = '"><script>alert(1)</script>'
    finding = {"row_mm": 10.0, "col_mm": 20.0, "size_mm2": 30.0, "score": 4.0, "healthy_quantile": 0.999}
    placed = finding | {"row": 24.5, "col": 49.5, "radius": 8.0}
    image = results()["images"][0] | {"exam_id": evil, "findings": [placed], "shape": [480, 360], "more_findings": 0}
    text = render(results(images=[image], heatmap_detector=evil, request=evil), list(FIGURES))
    assert evil not in text
    assert text.count("<script") == text.count("</script") == 1
    assert 'data-row="24.5" data-col="49.5" data-radius="8.0"' in text
    assert "export " not in text[text.index("<script>") :]  # it is no module


def test_missed_lesions_are_marked_in_images_whose_picture_shows_the_whole_of_them():
    image = results()["images"][0]
    shapes = {"whole": [480, 360], "long": [480, 2000]}
    pages = {name: render(results(images=[image | {"shape": shape}]), list(FIGURES)) for name, shape in shapes.items()}
    assert {name: text.count('<div class="missed"') for name, text in pages.items()} == {"whole": 1, "long": 0}


def test_building_does_not_change_the_results(tmp_path):
    given = results()
    before = copy.deepcopy(given)
    build(given, FIGURES, str(tmp_path))
    assert given == before


@pytest.mark.parametrize(
    ("changed", "figures", "message"),
    [
        ({"dataset": "mias", "rows": []}, [], "recipe, commit, comparisons are missing"),
        (results(), ["panel"], "the figure 'image-mdb024', which is not given"),
    ],
)
def test_incomplete_results_are_refused_before_anything_is_written(tmp_path, changed, figures, message):
    with pytest.raises(FormatError, match=message):
        build(changed, dict.fromkeys(figures, PNG), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_numbers_read_well():
    assert [number(0.005), number(1.0), number(None), number(12.345, 1)] == ["0.01", "1.00", "–", "12.3"]  # noqa: RUF001
    assert [p_value(p) for p in (1.0, 0.999, 0.0385, 2e-5, None)] == ["1", "> 0.99", "0.038", "< 0.0001", "–"]  # noqa: RUF001


@pytest.mark.parametrize("name", ["../stolen", "/tmp/stolen", "a/../../stolen", "..", "./a"])
def test_no_picture_of_a_strangers_results_lies_elsewhere(tmp_path, name):
    build(results(), FIGURES, str(tmp_path / "in"))
    file = tmp_path / "in/results.json"
    stranger = json.loads(file.read_text())
    stranger["pictures"] = {name: next(iter(stranger["pictures"].values()))}
    file.write_text(json.dumps(stranger))
    with pytest.raises(FormatError, match="which would lie elsewhere"):
        rebuild(str(tmp_path / "in"))
    assert not (tmp_path / "stolen.webp").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": SCHEMA + 1}, f"results of schema {SCHEMA} are wanted, not of {SCHEMA + 1}"),
        ({"schema": "1"}, "are wanted, not of '1'"),
        ({"colour": 1}, "no results have 'colour'"),
    ],
)
def test_results_of_a_newer_rayad_or_of_none_are_refused(tmp_path, changes, said):
    build(results(), FIGURES, str(tmp_path))
    file = tmp_path / "results.json"
    assert json.loads(file.read_text())["schema"] == SCHEMA
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(FormatError, match=rf"results\.json: .*{said}"):
        rebuild(str(tmp_path))
