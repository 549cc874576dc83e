"""DDSM: the published outline, its defects, optical densities, and lossless JPEG as its encoder wrote it."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from rayad.datasets import ddsm
from rayad.datasets.exam import Exam, Excluded, Images
from rayad.datasets.splits import assign
from rayad.errors import DatasetError, ImageError
from rayad.imaging import ljpeg
from tests.losslessjpeg import encoded

ICS = """ics_version 1.0
filename {name}
DATE_OF_STUDY 2 7 1995
PATIENT_AGE 42
FILM
FILM_TYPE REGULAR
DENSITY 4
DATE_DIGITIZED 7 22 1997
DIGITIZER LUMISYS LASER
SELECTED
LEFT_CC LINES 60 PIXELS_PER_LINE 40 BITS_PER_PIXEL 12 RESOLUTION 50 OVERLAY
LEFT_MLO LINES 60 PIXELS_PER_LINE 40 BITS_PER_PIXEL 12 RESOLUTION 50 NON_OVERLAY
RIGHT_CC LINES 60 PIXELS_PER_LINE 40 BITS_PER_PIXEL 12 RESOLUTION 50 NON_OVERLAY
RIGHT_MLO LINES 60 PIXELS_PER_LINE 40 BITS_PER_PIXEL 12 RESOLUTION 50 NON_OVERLAY
"""
SQUARE = "11 21 " + "2 " * 9 + "4 " * 4 + "6 " * 9 + "0 " * 4
OVERLAY = """TOTAL_ABNORMALITIES 2
ABNORMALITY 1
LESION_TYPE MASS SHAPE OVAL MARGINS CIRCUMSCRIBED
ASSESSMENT 4
SUBTLETY 5
PATHOLOGY MALIGNANT
TOTAL_OUTLINES 2
BOUNDARY
{square} #
\tCORE
12 22 2 4 6 0 #
ABNORMALITY 2
LESION_TYPE CALCIFICATION TYPE PUNCTATE DISTRIBUTION CLUSTERED
ASSESSMENT 4
SUBTLETY 5
PATHOLOGY BENIGN
TOTAL_OUTLINES 1
BOUNDARY
{second} #
"""


@pytest.fixture
def case(tmp_path: Path) -> Path:
    folder = tmp_path / "cases" / "case0029"
    folder.mkdir(parents=True)
    (folder / "C-0029-1.ics").write_text(ICS.format(name="C-0029-1"))
    (folder / "C_0029_1.LEFT_CC.OVERLAY").write_text(OVERLAY.format(square=SQUARE, second="39 2 1 1 1"))
    grey = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40)
    for view in ddsm.VIEWS[:3]:
        Pillow.fromarray(grey).save(folder / f"C_0029_1.{view}.png")
    return tmp_path


def test_films_of_a_case_and_what_is_wrong_with_it(case):
    dataset = ddsm.Dataset(str(case))
    assert isinstance(dataset, Images)
    left, oblique, right = dataset.exams()
    assert (left.exam_id, left.patient_id, left.view, left.laterality) == ("C_0029_1.LEFT_CC", "C-0029", "CC", "L")
    assert (left.density, left.spacing_mm) == ("4", 0.05)
    assert [exam.anomalous for exam in (left, oblique, right)] == [True, None, False]
    mass, specks = left.lesions
    assert (mass.kind, mass.malignant, mass.finding) == ("mass", True, "SHAPE OVAL MARGINS CIRCUMSCRIBED")
    assert (specks.kind, specks.malignant, specks.located) == ("calcification", False, False)
    reasons = sorted(found.reason for found in dataset.excluded())
    assert reasons == ["the chain code leaves the image", "the image is not there"]
    with pytest.raises(DatasetError, match="cannot be followed"):
        dataset.lesion_mask(left, specks)


def copied(case: Path, folder: str, name: str, overlays: bool = True) -> Path:
    """The case once more, in another folder and by another name."""
    target = case / folder
    target.mkdir(parents=True)
    for file in (case / "cases/case0029").iterdir():
        if overlays or file.suffix != ".OVERLAY":
            new_name = file.name.replace("C-0029-1", name).replace("C_0029_1", name.replace("-", "_"))
            (target / new_name).write_bytes(file.read_bytes())
    ics = ICS if overlays else ICS.replace("50 OVERLAY", "50 NON_OVERLAY")
    (target / f"{name}.ics").write_text(ics.format(name=name))
    return target


def test_two_cases_of_one_name_in_two_volumes_are_two_patients(case):
    copied(case, "cancers/cancer_08/case1500", "A-1500-1")
    copied(case, "benigns/benign_05/case1500", "A-1500-1")
    exams = ddsm.Dataset(str(case)).exams()
    assert {exam.patient_id for exam in exams} == {"C-0029", "cancer_08.A-1500", "benign_05.A-1500"}
    assert len({exam.exam_id for exam in exams}) == 9
    alone = ddsm.Dataset(str(case / "cancers")).exams()
    assert {exam.exam_id for exam in alone} < {exam.exam_id for exam in exams}


def test_a_damaged_case_costs_itself(case):
    good = ddsm.Dataset(str(case)).exams()
    copied(case, "one/case0100", "C-0100-1")
    copied(case, "two/case0100", "C-0100-1")  # no volume tells them apart
    copied(case, "case0101", "C-0101-1").joinpath("C-0101-1.ics").write_text(ICS.format(name="C-0999-1"))
    for number, (whole, damaged) in enumerate(
        [("LEFT_CC LINES 60", "LEFT_CC LINES"), ("LINES 60", "LINES 0"), ("LEFT_MLO", "LEFT_CC")], start=102
    ):
        name = f"C-0{number}-1"
        copied(case, name, name).joinpath(f"{name}.ics").write_text(ICS.format(name=name).replace(whole, damaged))
    exams, excluded = ddsm.Dataset(str(case)).listed()
    assert exams == good
    reasons = [found.reason for found in excluded if found.url.endswith(".ics")]
    assert sum("C-0100-1 is the name of" in reason for reason in reasons) == 2
    assert sum("its case is called 'C-0999-1'" in reason for reason in reasons) == 1
    assert sum("does not say LINES" in reason for reason in reasons) == 1
    assert sum("each view once, of a size" in reason for reason in reasons) == 2


def test_an_overlay_that_is_cut_off_has_a_lesion_of_unknown_place(case):
    folder = case / "cases/case0029"
    overlay = folder / "C_0029_1.LEFT_CC.OVERLAY"
    overlay.write_text(overlay.read_text().partition("ABNORMALITY 2")[0])
    exams, excluded = ddsm.Dataset(str(case)).listed()
    assert [(lesion.kind, lesion.located) for lesion in exams[0].lesions] == [("mass", True), ("other", False)]
    assert "2 abnormalities expected, there are 1" in {found.reason for found in excluded}
    overlay.write_text("")
    exams, excluded = ddsm.Dataset(str(case)).listed()
    assert [(lesion.kind, lesion.located) for lesion in exams[0].lesions] == [("other", False)]
    assert "some abnormalities expected, there are 0" in {found.reason for found in excluded}


def test_a_patient_whose_diseased_breast_is_not_there_is_not_healthy(case):
    folder = case / "cases/case0029"
    for view in ("LEFT_CC", "LEFT_MLO"):
        (folder / f"C_0029_1.{view}.png").unlink()
    exams = ddsm.Dataset(str(case)).exams()
    assert [(exam.exam_id, exam.anomalous) for exam in exams] == [("C_0029_1.RIGHT_CC", None)]
    copied(case, "benigns/benign_01/case0030", "C-0030-1", overlays=False)
    copied(case, "normals/normal_01/case0031", "C-0031-1", overlays=False)
    labels = {exam.patient_id: exam.anomalous for exam in ddsm.Dataset(str(case)).exams()}
    assert labels == {"C-0029": None, "C-0030": None, "C-0031": False}


def test_an_image_that_lacks_rows_is_taken_where_no_outline_depends_on_them(case):
    folder = case / "cases/case0029"
    left, _, right = ddsm.Dataset(str(case)).exams()
    dataset = ddsm.Dataset(str(case))
    for lacking, readable in ((1, True), (3, False)):
        Pillow.fromarray(np.zeros((60 - lacking, 40), np.uint16)).save(folder / "C_0029_1.LEFT_CC.png")
        if readable:
            assert dataset.pixels(left).shape == (60, 40)
        else:
            with pytest.raises(DatasetError, match=r"not \(57, 40\); at which edges they lack is not known"):
                dataset.pixels(left)
    for lacking, readable in ((4, True), (5, False)):
        Pillow.fromarray(np.zeros((60, 40 - lacking), np.uint16)).save(folder / "C_0029_1.RIGHT_CC.png")
        if readable:
            assert dataset.pixels(right).shape == (60, 40)
        else:
            with pytest.raises(DatasetError, match=r"\(60, 40\) px expected, as its .ics file says, not \(60, 35\)"):
                dataset.pixels(right)


def test_an_outline_is_filled(case):
    dataset = ddsm.Dataset(str(case))
    left = dataset.exams()[0]
    mask = dataset.lesion_mask(left, left.lesions[0])
    assert mask.shape == (60, 40)
    assert mask[20:25, 10:20].all()
    assert mask.sum() == 5 * 10


def test_grey_levels_become_optical_densities(case):
    dataset = ddsm.Dataset(str(case))
    pixels = dataset.pixels(dataset.exams()[0])
    grey = np.arange(60 * 40).reshape(60, 40)
    np.testing.assert_allclose(pixels, np.clip(1 - (grey - 4096.99) / -1009.01 / 4, 0, 1), atol=1e-6)
    dba = ddsm.optical_density(np.array([[0, 1, 64064]], np.uint16), "A-0001-1", "DBA 21")
    np.testing.assert_allclose(dba[0], [0, 0, 1], atol=1e-3)
    with pytest.raises(DatasetError, match="no calibration of its scanner 'DBA 21'"):
        ddsm.optical_density(grey.astype(np.uint16), "C-0029-1", "DBA 21")


def test_images_of_another_size_and_files_that_are_no_case(case):
    folder = case / "cases/case0029"
    Pillow.fromarray(np.zeros((30, 20), np.uint16)).save(folder / "C_0029_1.LEFT_CC.png")
    dataset = ddsm.Dataset(str(case))
    with pytest.raises(DatasetError, match=r"\(60, 40\) px expected"):
        dataset.pixels(dataset.exams()[0])
    (folder / "C-0030-1.ics").write_text("nothing")
    assert any("an .ics file of DDSM expected" in found.reason for found in ddsm.Dataset(str(case)).excluded())
    (case / "other").mkdir()
    with pytest.raises(DatasetError, match="no film of DDSM"):
        ddsm.Dataset(str(case / "other")).exams()


def test_the_published_outline_of_a_real_case(real_data):
    folder = real_data / "ddsm-ics-overlay" / "overlay-fixture"
    text = (folder / "B_3013_1.RIGHT_MLO.one-abnormality.OVERLAY").read_text()
    boundary = np.asarray(Pillow.open(folder / "B_3013_1.RIGHT_MLO_MALIGNANT0.boundary.png").convert("L")) > 0
    mask = np.asarray(Pillow.open(folder / "B_3013_1.RIGHT_MLO_MALIGNANT0.mask.png").convert("L")) > 0
    (found,) = ddsm.read_overlay(text, boundary.shape)
    assert (found.kind, found.malignant, found.defect) == ("mass", True, "")
    assert found.outline is not None
    drawn = np.zeros(boundary.shape, dtype=bool)
    drawn[tuple(found.outline.T)] = True
    assert (drawn == boundary).all()
    assert len(found.outline) == 1633
    np.testing.assert_array_equal(ddsm.filled(found.outline, boundary.shape), mask)


def test_the_ics_text_of_the_page(real_data):
    url = real_data / "ddsm-ics-overlay/overlay-fixture/B-3024-1.ics.from-ddsm-page.txt"
    case = ddsm.read_ics(url.read_text(), str(url))
    assert (case.name, case.density, case.digitizer) == ("B-3024-1", "4", "LUMISYS")
    assert [film.shape for film in case.films] == [(4696, 3024), (4688, 3048), (4624, 3056), (4664, 3120)]
    assert all(film.overlay and film.spacing_mm == 0.05 for film in case.films)


@given(
    st.text(max_size=300)
    | st.text(alphabet="01234567 #\n", max_size=300).map(lambda code: OVERLAY.format(square=code, second=code))
)
def test_any_text_is_an_overlay_or_a_defect(text):
    for found in ddsm.read_overlay(text, (60, 40)):
        assert found.outline is not None or found.defect


@given(st.text(max_size=300))
def test_any_text_is_a_case_or_an_error(text):
    message = ""
    try:
        ddsm.read_ics(text, "x.ics")
    except DatasetError as error:  # any other error fails the test
        message = str(error)
    assert not message or "x.ics" in message


def test_lossless_jpeg_of_the_encoder_of_ddsm():
    image = np.random.default_rng(0).integers(0, 65536, (37, 53), dtype=np.uint16)
    image[:, :20] = 17
    np.testing.assert_array_equal(ljpeg.decode(encoded(image), "x"), image)
    np.testing.assert_array_equal(ljpeg.decode(encoded(image.T.copy()), "x"), image.T)


def test_damaged_lossless_jpeg():
    data = encoded(np.arange(300, dtype=np.uint16).reshape(15, 20))
    with pytest.raises(ImageError, match="x: the file is cut off"):
        ljpeg.decode(data[:-2], "x")
    with pytest.raises(ImageError, match="one component and 16 bits expected"):
        ljpeg.decode(b"\x89PNG", "x")
    huge = bytearray(data)
    at = data.index(b"\xff\xc3")
    huge[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError):
        ljpeg.decode(bytes(huge), "x")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6))
def test_mutated_lossless_jpeg_is_an_image_or_an_error(changes):
    data = bytearray(encoded(np.arange(300, dtype=np.uint16).reshape(15, 20)))
    for at, value in changes:
        data[at % len(data)] = value
    message = ""
    try:
        ljpeg.decode(bytes(data), "x")
    except ImageError as error:  # any other error fails the test
        message = str(error)
    assert not message or message.startswith("x: ")


def test_the_four_views_of_a_real_normal_case(real_data, tmp_path):
    """JPEG conversions, two of which lack three rows of the film; the .ics file is made of its published fields."""
    with (real_data / "ddsm-ics-overlay/tables/all_normal_cases_data.csv").open(newline="") as table:
        row = next(row for row in csv.DictReader(table) if row["filename"] == "A-0018-1")
    lines = [f"{name} {row[name]}" for name in ("filename", "DENSITY", "DIGITIZER", *ddsm.VIEWS)]
    (tmp_path / "A-0018-1.ics").write_text("\n".join(lines) + "\n")
    for image in (real_data / "ddsm-normal-jpeg").glob("*.jpg"):
        (tmp_path / image.name).symlink_to(image)
    dataset = ddsm.Dataset(str(tmp_path))
    exams = dataset.exams()
    assert [(exam.view, exam.laterality) for exam in exams] == [("CC", "L"), ("MLO", "L"), ("CC", "R"), ("MLO", "R")]
    assert {(exam.density, exam.spacing_mm, exam.anomalous) for exam in exams} == {("3", 0.042, False)}
    assert dataset.excluded() == []
    assert [dataset.pixels(exam).shape for exam in exams] == [(4679, 2009), (5519, 2384), (4844, 2039), (5474, 2144)]


Facts = tuple[str, ...]
"""Age of the patient, density and scanner, the kind of lesion, and the line of each view."""


def cases_of(tables: Path) -> dict[tuple[str, str], Facts]:
    """Volume and name of each case in the tables -> its facts.

    The tables were joined by name: four names that stand in two volumes of benign cases have the facts of both cases in
    both, and nothing says which are whose; here the first ones are those of the first volume.
    """
    found: dict[str, dict[str, list[Facts]]] = defaultdict(lambda: defaultdict(list))
    for table in sorted(tables.glob("*.csv")):
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                facts = row["PATIENT_AGE"], row["DENSITY"], row["DIGITIZER"], row.get("LESION_TYPE", "")
                found[row["filename"]][row["CASE"]].append((*facts, *(row[view] for view in ddsm.VIEWS)))
    cases: dict[tuple[str, str], Facts] = {}
    for name, volumes in found.items():
        for number, (volume, rows) in enumerate(sorted(volumes.items())):
            different = sorted(set(rows))
            cases[volume, name] = different[number % len(different)]
    return cases


@pytest.fixture(scope="module")
def published(real_data, tmp_path_factory) -> tuple[Path, dict[tuple[str, str], Facts]]:
    """The tree of all cases in the tables; images are empty, every outline is the same one."""
    root = tmp_path_factory.mktemp("ddsm")
    cases = cases_of(real_data / "ddsm-ics-overlay/tables")
    for (volume, name), (age, density, digitizer, lesion, *films) in cases.items():
        folder = root / f"{volume.partition('_')[0]}s" / volume / f"case{name.split('-')[1]}"
        folder.mkdir(parents=True)
        lines = [f"filename {name}", f"PATIENT_AGE {age}", f"DENSITY {density}", f"DIGITIZER {digitizer}"]
        lines += [f"{view} {film}" for view, film in zip(ddsm.VIEWS, films, strict=True)]
        (folder / f"{name}.ics").write_text("\n".join(lines) + "\n")
        for view, film in zip(ddsm.VIEWS, films, strict=True):
            place = folder / f"{name.replace('-', '_')}.{view}"
            place.with_name(place.name + ".LJPEG").touch()
            if not film.strip().endswith("NON_OVERLAY"):
                entry = f"TOTAL_ABNORMALITIES 1\nABNORMALITY 1\nLESION_TYPE {lesion}\nBOUNDARY\n{SQUARE} #\n"
                place.with_name(place.name + ".OVERLAY").write_text(entry)
    return root, cases


@pytest.fixture(scope="module")
def whole(published) -> tuple[list[Exam], list[Excluded]]:
    """What is listed of that tree."""
    return ddsm.Dataset(str(published[0])).listed()


def test_the_whole_set_is_listed(published, whole):
    _, cases = published
    assert (len(cases), len({name for _, name in cases})) == (2463, 2455)
    names = Counter(name for _, name in cases)
    assert {name for name, count in names.items() if count > 1} == set(ddsm.TWICE)
    exams, excluded = whole
    assert excluded == []
    assert len(exams) == 4 * len(cases)
    assert len({exam.patient_id for exam in exams}) == len(cases)
    assert {exam.exam_id for exam in exams} >= {"A_0018_1.LEFT_CC", "cancer_08.A_1500_1.LEFT_CC"}


def test_the_healthy_patients_are_those_of_the_normal_volumes(published, whole):
    _, cases = published
    exams, _ = whole
    labels: dict[str, set[bool | None]] = defaultdict(set)
    for exam in exams:
        labels[exam.patient_id].add(exam.anomalous)
    normal = {name.rpartition("-")[0] for volume, name in cases if volume.startswith("normal")}
    assert {patient for patient, known in labels.items() if known == {False}} == normal
    assert all(True in known for patient, known in labels.items() if patient not in normal)
    assert (len(normal), sum(exam.patient_id in normal for exam in exams)) == (694, 2776)
    splits = assign(exams)
    assert not any(splits[e.exam_id] in ("train", "validation") for e in exams if e.patient_id not in normal)


def test_the_tables_lack_one_normal_case_of_those_that_the_set_has(published):
    """The set's own DDSM_README (8 August 2000) counts the cases of each volume: 78 in normal_07, the tables have 77.

    It has 118 for the 111 of normal_01; by both numbers the sum, 702, would be none of those that were published.
    """
    counted = (111, 117, 38, 57, 47, 60, 78, 27, 59, 23, 58, 20)
    volumes = Counter(volume for volume, _ in published[1])
    tables = tuple(volumes[f"normal_{number:02}"] for number in range(1, 13))
    assert (sum(counted), sum(tables)) == (695, 694)
    assert [number for number, pair in enumerate(zip(counted, tables, strict=True), start=1) if len(set(pair)) > 1] == [
        7
    ]


def test_the_dark_film_of_a_real_image(real_data):
    """Its first rows show dark film and a label; a decoder by the standard sees a ramp up to 40,000 there."""
    url = real_data / "ddsm-ics-overlay/ljpeg-truncated/A_0002_1.RIGHT_CC.LJPEG"
    with pytest.raises(ImageError, match="too short for 4334 x 1874 px"):
        ljpeg.decode(url.read_bytes(), "x")
    image = ljpeg.decode(url.read_bytes() + b"\xff\xd9" + bytes(1_000_000), "x")
    assert image.shape == (4334, 1874)
    assert np.median(image[:160, 100:1600]) < 20
    assert np.percentile(image[:160, 100:1600], 99) < 60
