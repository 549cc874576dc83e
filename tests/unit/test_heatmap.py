"""What a heatmap leaves behind, with a counterfactual where the detector has one."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from untrained import parts

from rayad import storage
from rayad.datasets import phantom
from rayad.errors import DatasetError, ImageError, OptionError
from rayad.heatmaps.answers import Failure, Result, Row
from rayad.heatmaps.drawing import Written
from rayad.heatmaps.images import HeatmapRequest, asked_of, found_in, named
from rayad.imaging.mammogram import Preprocessing
from rayad.pipeline import heatmap
from rayad.pipeline.heatmap import write_heatmaps
from rayad.pool import Here
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Detector
from rayad.scoring.scores import LatentScore, ModelScore
from tests.dicoms import mammogram
from tests.dicoms import written as written_dicom


@pytest.fixture(scope="module")
def detector() -> Detector:
    one = Detector("cae-spn", LatentScore(*parts()), Preprocessing(spacing_mm=0.8, intensity="relative"))
    scores = np.random.default_rng(0).normal(size=(2, 9, 9)).astype(np.float32)
    return one.calibrated(calibrate({"a": [scores[0]], "b": [scores[1]]}))


BOTH = Written(counterfactual=True)


def written(detector: Detector, folder) -> dict[str, np.ndarray]:
    data = phantom.Dataset(patients=1, height=256, width=192, spacing_mm=0.8)
    pixels = (data.pixels(data.exams()[0]) * 65535).astype(np.uint16)
    Image.fromarray(pixels).save(folder / "one.png")
    rows = list(
        write_heatmaps(
            Here(), detector, [str(folder / "one.png")], HeatmapRequest(0.8, "MLO"), str(folder / "maps"), BOTH
        )
    )
    assert isinstance(rows[0], Result)
    assert rows[0].name == "one"
    assert (folder / "maps/one.png").read_bytes().startswith(b"\x89PNG")
    with np.load(folder / "maps/one.npz") as arrays:
        return dict(arrays)


def test_a_likelihood_leaves_the_healthy_version_of_the_picture_that_the_model_sees(detector, tmp_path):
    arrays = written(detector, tmp_path)
    for name in ("counterfactual", "change"):
        assert (arrays[name].shape, arrays[name].dtype) == ((256, 192), np.float32), name
        assert np.isfinite(arrays[name]).all(), name
    nothing = arrays["counterfactual"][:, -4:] if arrays["tissue"][:, 0].any() else arrays["counterfactual"][:, :4]
    assert nothing.max() == 0  # "relative" is 0 outside the breast


def test_a_healthy_version_is_refused_where_the_detector_has_no_density(detector, tmp_path):
    plain = replace(detector, score=ModelScore(detector.model, "reconstruction"))
    with pytest.raises(OptionError, match="has the score reconstruction, which has no density: there is no healthy"):
        written(plain, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["one.png"]


@pytest.mark.parametrize("images", [[], ["empty"]])
def test_no_images_are_said_to_be_none(detector, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=f"no image in {images[0] if images else 'an empty list'}; rayad reads .png"):
        next(write_heatmaps(Here(), detector, images, HeatmapRequest(0.8), "out"))


def test_names_are_those_of_files_and_of_folders_where_two_have_the_same():
    signed = "https://host/a/1.png?signature=b/2.png"
    assert named([signed, "s3://b/left/3.png", "s3://b/right/3.dcm", "/in/1.2.840"]) == [
        (signed, "1"),
        ("s3://b/left/3.png", "left-3"),
        ("s3://b/right/3.dcm", "right-3"),
        ("/in/1.2.840", "1.2.840"),
    ]


def test_names_of_an_archives_disc_are_as_long_as_they_need_be():
    files = ["/cd/ST0/SE0/IM000000", "/cd/ST0/SE1/IM000000", "/cd/ST1/SE0/IM000000", "/cd/ST1/SE0/IM000001"]
    assert [name for _, name in named(files)] == [
        "ST0-SE0-IM000000",
        "SE1-IM000000",
        "ST1-SE0-IM000000",
        "IM000001",
    ]


@pytest.mark.parametrize("files", [["/a/x.png", "/a/x.dcm"], ["/a-b/c.png", "/a/b-c.png"], ["x.png", "/x.png"]])
def test_no_two_images_have_one_name(files):
    assert len({name for _, name in named(files)}) == 2


def test_an_image_that_is_given_twice_is_refused():
    with pytest.raises(OptionError, match=r"/a/x.png: this image is given twice"):
        named(["/a/x.png", "/a/x.png"])


@pytest.fixture
def images(tmp_path) -> Path:
    data = phantom.Dataset(patients=2, height=256, width=192, spacing_mm=0.8)
    (tmp_path / "in").mkdir()
    for exam in data.exams()[:2]:
        pixels = (data.pixels(exam) * 65535).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"in/{exam.exam_id}.png")
    (tmp_path / "in/z.png").write_bytes(b"no image")
    return tmp_path / "in"


def scored(monkeypatch) -> list[str]:
    """Names of the images that are scored from now on."""
    names, write = [], heatmap.write_heatmap
    monkeypatch.setattr(heatmap, "write_heatmap", lambda *of: names.append(of[3].name) or write(*of))
    return names


MLO, QUICK = HeatmapRequest(0.8, "MLO"), Written()


def again(detector, images, request=MLO, written=QUICK) -> list[Row]:
    return list(write_heatmaps(Here(), detector, [str(images)], request, str(images.parent / "out"), written))


def test_a_table_says_of_each_image_its_spacing_and_view(detector, images, tmp_path):
    names = sorted(file.name for file in images.glob("*.png") if file.name != "z.png")
    lines = ["URL;Spacing_mm;View;note", f"in/{names[0]};0,8;MLO;", f"{images}/{names[1]};;CC;", "in/z.png;;;"]
    (tmp_path / "new.csv").write_text("\n".join(lines))
    plain = again(detector, images, HeatmapRequest(0.8, "MLO"))
    request = HeatmapRequest(spacing_mm=0.8, view="CC")
    rows = list(write_heatmaps(Here(), detector, [str(tmp_path / "new.csv")], request, str(tmp_path / "maps"), QUICK))
    assert [Path(row.image).name for row in rows] == [*names, "z.png"]
    assert rows[0] == plain[0].model_copy(update={"image": rows[0].image})
    assert isinstance(rows[2], Failure)
    columns = {"url": [f"{images}/{names[0]}"], "spacing_mm": [0.8], "view": ["MLO"]}
    pq.write_table(pa.table(columns), tmp_path / "new.parquet")
    table = [str(tmp_path / "new.parquet")]
    (row,) = write_heatmaps(Here(), detector, table, HeatmapRequest(), str(tmp_path / "more"), QUICK)
    assert row.score == plain[0].score


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,view\na.png,CC", r"columns file, view, separated by ','; wanted url and any of spacing_mm, view"),
        (
            "url,spacing_mm\na.png,far",
            "row 1: spacing_mm is a number of mm a pixel, from .* or empty; not 'far'",
        ),
        ("url,view\na.png,up", "row 1: .*'up'"),
        ("url,view\na.png", "row 1 needs a url and 2 cells"),
    ],
)
def test_a_table_that_cannot_be_understood_is_one_sentence(detector, tmp_path, text, said):
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(DatasetError, match=f"new.csv: {said}"):
        next(write_heatmaps(Here(), detector, [str(tmp_path / "new.csv")], MLO, str(tmp_path / "maps")))
    assert not (tmp_path / "maps").exists()


def test_a_table_cannot_name_what_lies_in_the_target(detector, images, tmp_path):
    name = next(file.name for file in images.glob("*.png") if file.name != "z.png")
    (tmp_path / "new.csv").write_text(f"url\nin/{name}")
    before = (images / name).read_bytes()
    with pytest.raises(OptionError, match=f"below the input .*{name}"):
        list(write_heatmaps(Here(), detector, [str(tmp_path / "new.csv")], MLO, str(images), Written()))
    assert (images / name).read_bytes() == before


def test_what_is_done_is_not_done_again_and_what_failed_is_tried(detector, images, monkeypatch):
    names = scored(monkeypatch)
    first = again(detector, images)
    good = [row.name for row in first if isinstance(row, Result)]
    assert (len(good), names) == (2, [*good, "z"])
    assert again(detector, images) == first
    assert names == [*good, "z", "z"]
    lines = [json.loads(line) for line in (images.parent / "out/heatmaps.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [row.image for row in first]
    os.utime(images / f"{good[0]}.png", (1, 1))
    (images.parent / f"out/{good[1]}.npz").unlink()
    assert again(detector, images) == first
    assert names[4:] == [*good, "z"]


def test_no_request_an_image_says_what_is_done(detector, images, monkeypatch):
    first, exists, asked = again(detector, images), storage.exists, []
    monkeypatch.setattr(storage, "exists", lambda url: asked.append(url) or exists(url))
    assert again(detector, images) == first
    assert not [url for url in asked if url.endswith((".npz", ".png"))]


@pytest.mark.parametrize(
    "change",
    [
        {"request": HeatmapRequest(0.8, "CC")},
        {"written": Written(picture=False)},
        {"detector": "another"},
    ],
)
def test_another_question_is_answered_anew(detector, images, monkeypatch, change):
    again(detector, images)
    names = scored(monkeypatch)
    if "detector" in change:
        change = {"detector": replace(detector, name="another")}
    again(**({"detector": detector, "images": images} | change))
    assert len(names) == 3


def test_a_crash_leaves_rows_of_what_was_done(detector, images, monkeypatch):
    monkeypatch.setattr(heatmap, "EVERY_S", -1.0)
    rows = write_heatmaps(Here(), detector, [str(images)], MLO, str(images.parent / "out"), QUICK)
    first = next(rows)
    del rows
    with (images.parent / "out/heatmaps.jsonl").open("a") as file:
        file.write('{"image": "cut sho')
    names = scored(monkeypatch)
    assert again(detector, images)[0] == first
    assert len(names) == 2


def test_a_heatmap_of_another_image_is_not_written_over(detector, images):
    again(detector, images)
    other = images.parent / "other"
    images.rename(other)
    with pytest.raises(OptionError, match=r"is the heatmap of .*/in/.*png there; name another folder"):
        again(detector, other)


def test_pictures_and_healthy_versions_can_be_left_out(detector, images):
    again(detector, images, written=Written(picture=False))
    assert {file.suffix for file in (images.parent / "out").iterdir()} == {".npz", ".jsonl"}
    with np.load(next((images.parent / "out").glob("*.npz"))) as arrays:
        assert {"counterfactual", "change"}.isdisjoint(arrays)


def test_images_that_were_prepared_elsewhere_have_the_same_heatmaps(detector, images):
    rows = again(detector, images)
    requests, _ = asked_of([str(images)], MLO)
    folder = images.parent / "apart"
    work = detector, str(folder), QUICK, "cpu"
    assert [heatmap.Writer(*work)(r, partial(heatmap.Writer.prepare, *work, r)) for r in requests] == rows
    for row in rows:
        if isinstance(row, Result):
            with np.load(folder / f"{row.name}.npz") as a, np.load(images.parent / f"out/{row.name}.npz") as b:
                assert all(np.array_equal(a[name], b[name], equal_nan=True) for name in b)


def test_a_rule_makes_a_verdict_of_every_row(detector, images):
    scores = [row.score for row in again(detector, images) if isinstance(row, Result)]
    assert detector.calibration is not None
    middle = sum(scores) / 2
    for rule, threshold in ((f"score={middle!r}", middle), ("sd=1", None)):
        folder, ruled = str(images.parent / rule[:2]), detector.ruled(rule)
        rows = [r for r in write_heatmaps(Here(), ruled, [str(images)], MLO, folder, QUICK) if isinstance(r, Result)]
        if threshold is None:
            healthy = detector.calibration.image_scores
            threshold = healthy.mean() + healthy.std()
        assert [row.threshold for row in rows] == pytest.approx([threshold] * 2)
        assert [row.verdict for row in rows] == ["abnormal" if row.score > threshold else "normal" for row in rows]
        assert all(row.rule for row in rows)
    assert {row.verdict for row in again(detector, images) if isinstance(row, Result)} == {""}


def test_every_row_has_the_floor_of_its_p_value_and_the_patients_behind_it(detector, images):
    row = again(detector, images)[0]
    assert (row.p_value_floor, row.calibration_patients) == (1 / 3, 2)
    assert detector.calibration.few == "calibrated on 2 healthy patients, fewer than 20: no p-value is below 0.333"


def test_p_values_are_for_the_places_of_the_calibration(detector, images):
    known = replace(detector, provenance={"step_mm": 3.2})
    assert known.step() == known.step(3.2) == known.step(3.3) == 4
    assert replace(known, calibration=None).step(1.6) == detector.step(1.6) == 2
    with pytest.raises(OptionError, match=r"places 3.2 mm apart, its p-values are not for places 1.6 mm"):
        again(known, images, request=HeatmapRequest(0.8, "MLO", 1.6))
    assert not (images.parent / "out").exists()


def test_what_an_image_is_its_content_says(tmp_path):
    grey, folder = Image.fromarray(np.full((8, 8), 9, np.uint8)), tmp_path / "cd/ST0"
    folder.mkdir(parents=True)
    for name, kind in (("a.png", "PNG"), ("b.bmp", "BMP"), ("c.webp", "WEBP"), ("d.gif", "GIF"), ("e", "JPEG")):
        grey.save(folder / name, kind)
    (folder / "IM000000").write_bytes(written_dicom(mammogram(np.zeros((8, 8), np.uint8))))
    (folder / "broken.jpg").write_bytes(b"")
    others = {"README": b"Hello", "DICOMDIR": b"\0" * 128 + b"DICM", "page.html": b"<p>", "in.zip": b"PK\x03\x04"}
    for name, data in others.items():
        (folder / name).write_bytes(data)
    (folder / "nowhere").symlink_to("gone")
    files, left_out = found_in([str(tmp_path / "cd")])
    assert [Path(file).name for file in files] == ["IM000000", "a.png", "b.bmp", "broken.jpg", "c.webp", "d.gif", "e"]
    assert sorted(Path(file).name for file in left_out) == sorted([*others, "nowhere"])
    assert found_in([str(folder / "README")]) == ([str(folder / "README")], [])
