"""Any folder of images: with a table, without one, and written by export."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayad import storage
from rayad.datasets import phantom
from rayad.datasets.exam import Exam, Images, Lesion
from rayad.datasets.folder import Dataset, export
from rayad.errors import DatasetError, ImageError, OptionError, StorageError


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 4:7] = 1
    (tmp_path / "b").mkdir()
    (tmp_path / "a.png").write_bytes(encoded(grey))
    (tmp_path / "b" / "c.tif").write_bytes(encoded(grey.astype(np.uint16) * 1000, "TIFF"))
    (tmp_path / "b" / "c mask.png").write_bytes(encoded(mask))
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def labels(folder: Path, text: str) -> Dataset:
    (folder / "labels.csv").write_text(text)
    return Dataset(str(folder), spacing_mm=0.1)


def exams(dataset: Images) -> dict[str, Exam]:
    return {exam.exam_id: exam for exam in dataset.exams()}


def test_without_a_table_every_image_is_a_patient_without_a_label(folder):
    found = Dataset(str(folder), spacing_mm=0.1).exams()
    assert [exam.exam_id for exam in found] == ["a", "b/c", "b/c mask"]
    assert [exam.patient_id for exam in found] == ["a", "b/c", "b/c mask"]
    assert {(exam.anomalous, exam.spacing_mm, exam.view) for exam in found} == {(None, 0.1, "")}


def test_all_may_be_called_healthy(folder):
    found = Dataset(str(folder), spacing_mm=0.1, healthy=True).exams()
    assert {exam.anomalous for exam in found} == {False}


def test_a_label_in_the_table_goes_before_healthy(folder):
    dataset = labels(folder, "image,label\na.png,anomalous\n")
    assert exams(replace(dataset, healthy=True))["a"].anomalous is True


def test_the_table_describes_image_and_lesions(folder):
    dataset = labels(
        folder,
        "image,patient,label,view,laterality,density,kind,finding,malignant,row,col,radius,mask,spacing_mm\n"
        "a.png,p1,Normal,cc,l,D,,,,,,,,0.05\n"
        'b/c.tif,p2,anomalous,MLO,R,,mass,"SPIC, 2",yes,2,5.5,1.5,,\n'
        "b/c.tif,,,,,,calcification,,no,,,,b/c mask.png,\n"
        "b/c.tif,,,,,,,late,,,,,,\n",
    )
    found = exams(dataset)
    assert found["a"] == Exam("a", "p1", f"{folder}/a.png", False, "CC", "L", "D", 0.05)
    mask_url = f"{folder}/b/c mask.png"
    lesions = (
        Lesion("mass", "SPIC, 2", True, (2.0, 5.5, 1.5)),
        Lesion("calcification", "", False, None, mask_url),
        Lesion("lesion", "late", None),
    )
    assert found["b/c"] == Exam("b/c", "p2", f"{folder}/b/c.tif", True, "MLO", "R", "", 0.1, lesions)
    assert set(found) == {"a", "b/c"}  # the mask is no image
    assert [lesion.located for lesion in lesions] == [True, True, False]
    np.testing.assert_array_equal(np.argwhere(dataset.lesion_mask(found["b/c"], lesions[1]))[[0, -1]], [[1, 4], [2, 6]])


def test_a_lesion_makes_an_image_anomalous(folder):
    assert exams(labels(folder, "image,kind\na.png,mass\n"))["a"].anomalous is True


def test_images_that_the_table_leaves_out_have_no_label(folder):
    found = exams(labels(folder, "image,label\n./a.png,normal\n"))
    assert (found["a"].anomalous, found["b/c"].anomalous) == (False, None)


def test_a_readers_answers_are_a_table_whose_names_may_lack_their_endings(folder, capsys):
    table = "image,row,col,radius,reading,detector,sha256\r\nb/c,2,5.5,1.5,accepted,cae-spn,\r\n"
    found = exams(labels(folder, table))
    assert "not used: reading, detector, sha256" in capsys.readouterr().err
    assert found["b/c"].lesions == (Lesion("lesion", "", None, (2.0, 5.5, 1.5)),)
    (folder / "b/c.png").write_bytes((folder / "a.png").read_bytes())  # now b/c may be either
    with pytest.raises(DatasetError, match="not there: b/c"):
        exams(labels(folder, table))


def test_pixels_keep_their_depth(folder):
    dataset = Dataset(str(folder), spacing_mm=0.1)
    pixels = dataset.pixels(exams(dataset)["b/c"])
    np.testing.assert_allclose(pixels * 65535, np.arange(48).reshape(6, 8) * 1000, atol=0.01)


def test_a_table_by_a_spreadsheet_is_read(folder):
    (folder / "labels.csv").write_bytes("\ufeffimage,label\r\na.png,normal\r\n\r\n".encode())
    assert exams(Dataset(str(folder), spacing_mm=1.0))["a"].anomalous is False


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,label\nx.png,normal\ny.png,normal\n", r"names images that are not there: x\.png, y\.png"),
        ("image,kind,mask\na.png,mass,m.png\n", r"not there: m\.png"),
        ("image,lable\na.png,normal\n", r"a column 'lable'; is label meant?"),
        ("patient,label\np,normal\n", "wanted image and any of"),
        ("", "wanted image and any of"),
        ("image,label\na.png,sick\n", "a.png: label 'sick' is not normal, anomalous or empty"),
        ("image,laterality\na.png,middle\n", "'middle' is no side, such as L, R"),
        ("image,malignant\na.png,maybe\n", "malignant 'maybe' is not no, yes or empty"),
        ("image,label,kind\na.png,normal,mass\n", "a.png is normal and has a lesion"),
        ("image,patient\na.png,p\na.png,q\n", "a.png has one patient, not 2 of them"),
        ("image,row,col,radius\na.png,1,2,\n", "radius '' is not a number"),
        ("image,row,col,radius\na.png,1,x,3\n", "col 'x' is not a number"),
        ("image,row,col,radius\na.png,1,2,0\n", "radius 0 is not above 0"),
        ("image,spacing_mm\na.png,-1\n", "spacing_mm -1 is not above 0"),
        ("image,spacing_mm\na.png,nan\n", "spacing_mm 'nan' is not a number"),
        ("image,label\na.png\n", "row 1 needs an image and 2 cells"),
        ("image,label\na.png,normal,1\n", "row 1 needs an image and 2 cells"),
        ("image,label\n,normal\n", "row 1 needs an image and 2 cells"),
        ('image,label\n"a.png,normal\n', "not a table of text separated by ','"),
    ],
)
def test_a_table_that_does_not_fit_is_explained(folder, table, message):
    with pytest.raises(DatasetError, match=message):
        labels(folder, table).exams()


def test_a_table_that_is_not_text_is_explained(folder):
    (folder / "labels.csv").write_bytes(b"image\n\0\xff\n")
    with pytest.raises(DatasetError, match="bytes of zero"):
        Dataset(str(folder), spacing_mm=0.1).exams()


def test_a_missing_spacing_is_asked_for(folder):
    (folder / "labels.csv").write_text("image,spacing_mm\na.png,0.1\n")
    with pytest.raises(DatasetError, match=r"b/c mask\.png, .*/b/c\.tif: no spacing_mm"):
        Dataset(str(folder)).exams()


def test_images_that_differ_in_their_ending_only_are_named(folder):
    (folder / "a.pgm").write_bytes(b"P5\n1 1\n255\n\x01")
    with pytest.raises(DatasetError, match=r"a: one image an exam .*a\.pgm, .*a\.png"):
        Dataset(str(folder), spacing_mm=0.1).exams()


def test_an_empty_folder_is_no_data_set(tmp_path):
    with pytest.raises(DatasetError, match="no image in this folder"):
        Dataset(str(tmp_path), spacing_mm=0.1).exams()
    with pytest.raises(StorageError):
        Dataset(str(tmp_path / "nowhere"), spacing_mm=0.1).exams()


def test_a_mask_of_another_shape_is_an_error(folder):
    (folder / "b" / "c mask.png").write_bytes(encoded(np.ones((8, 6), np.uint8)))
    dataset = labels(folder, "image,mask\na.png,b/c mask.png\n")
    exam = exams(dataset)["a"]
    with pytest.raises(DatasetError, match=r"mask of \(8, 6\) px for .*a\.png of \(6, 8\) px"):
        dataset.lesion_mask(exam, exam.lesions[0])


def test_colour_is_refused(folder):
    (folder / "a.png").write_bytes(encoded(np.arange(3 * 48, dtype=np.uint8).reshape(6, 8, 3)))
    dataset = Dataset(str(folder), spacing_mm=0.1)
    with pytest.raises(ImageError, match=r"a\.png"):
        dataset.pixels(exams(dataset)["a"])


@pytest.mark.parametrize("url", ["memory://exported", "{tmp}/exported"])
def test_what_export_writes_reads_back_equal(url, tmp_path):
    source = phantom.Dataset(patients=5, diseased=0.6, height=128, width=96)
    before = source.exams()
    target = url.format(tmp=tmp_path)
    export(source, before, target)
    dataset = pickle.loads(pickle.dumps(Dataset(target)))
    after = dataset.exams()
    assert [without_urls(exam) for exam in after] == [without_urls(exam) for exam in before]
    assert any(exam.lesions for exam in after)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(dataset.pixels(new), source.pixels(old), atol=1 / 65535)
        for one, other in zip(old.lesions, new.lesions, strict=True):
            np.testing.assert_array_equal(dataset.lesion_mask(new, other), source.lesion_mask(old, one))


def without_urls(exam: Exam) -> Exam:
    return replace(exam, url="", lesions=tuple(replace(lesion, mask_url="") for lesion in exam.lesions))


def test_export_keeps_unknown_labels_and_places(folder):
    dataset = labels(folder, "image,kind,malignant\na.png,,\nb/c.tif,mass,\nb/c mask.png,,\n")
    before = dataset.exams()
    export(dataset, before, "memory://unknown")
    after = Dataset("memory://unknown").exams()
    assert [without_urls(exam) for exam in after] == [without_urls(exam) for exam in before]
    assert [exam.anomalous for exam in after] == [None, True, None]
    assert not storage.exists("memory://unknown/masks")


ODD_TABLES = {
    "semicolons": "image;patient;spacing_mm;view\na.png;Müller;0,4;mlo\n".encode(),
    "tabs": "image\tpatient\tspacing_mm\tview\na.png\tMüller\t0.4\tR-MLO\n".encode(),
    "windows": "image,patient,spacing_mm,view\na.png,Müller,0.4,oblique\n".encode("cp1252"),
    "utf-16": "image,patient,spacing_mm,view\na.png,Müller,0.4,MLO\n".encode("utf-16"),
    "a mark": "image,patient,spacing_mm,view\na.png,Müller,0.4,MLO\n".encode("utf-8-sig"),
    "quoted commas": 'image,patient,spacing_mm,view\na.png,Müller,"0,4",MLO\n'.encode(),
    "capitals": "Image,Patient,Spacing_mm,VIEW\nA.PNG,Müller,0.4,MLO\n".encode(),
    "blanks": " image , patient,spacing_mm ,view\n a.png , Müller, 0.4 ,MLO\n\n".encode(),
    "backslashes": "image,patient,spacing_mm,view\n.\\a.png,Müller,0.4,MLO\n".encode(),
}


@pytest.mark.parametrize("name", ODD_TABLES)
def test_tables_of_every_program_are_read(tmp_path, name):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes(ODD_TABLES[name])
    (exam,) = Dataset(str(tmp_path)).exams()
    assert (exam.patient_id, exam.spacing_mm, exam.view) == ("Müller", 0.4, "MLO")


def test_columns_that_are_not_used_are_named(tmp_path, capsys):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,age,spacing_mm\na.png,55,0.4\n")
    assert len(Dataset(str(tmp_path)).exams()) == 1
    assert "labels.csv: columns that are not used: age" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "anomalous"), [("Healthy", False), ("0", False), ("Abnormal", True), (" malignant ", True)]
)
def test_words_for_labels(tmp_path, word, anomalous):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"image,label,spacing_mm\na.png,{word},0.4\n")
    assert Dataset(str(tmp_path)).exams()[0].anomalous is anomalous


def test_a_view_of_one_side_is_not_of_the_other(tmp_path):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,view,laterality,spacing_mm\na.png,RMLO,left,0.4\n")
    with pytest.raises(DatasetError, match="view 'RMLO' is of the other side than laterality 'left'"):
        Dataset(str(tmp_path)).exams()


def masked(tmp_path, mask: np.ndarray) -> np.ndarray:
    """What is read of a mask."""
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    (tmp_path / "labels.csv").write_text("image,spacing_mm,kind,mask\na.png,0.4,mass,m.png\n")
    dataset = Dataset(str(tmp_path))
    (exam,) = dataset.exams()
    return dataset.lesion_mask(exam, exam.lesions[0])


LESION = np.zeros((20, 20), np.uint8)
LESION[4:9, 5:12] = 1


@pytest.mark.parametrize("mask", [LESION, 255 * LESION, 1 + LESION, np.dstack([255 * LESION] * 3)])
def test_the_higher_of_two_values_is_the_lesion(tmp_path, mask):
    np.testing.assert_array_equal(masked(tmp_path, mask), LESION > 0)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (0 * LESION, "a mask of two values expected, every value is 0"),
        (0 * LESION + 255, "a mask of two values expected, every value is 255"),
        (255 - 255 * LESION, "covers 91% of the image; it is inverted, or no lesion"),
        (np.arange(400, dtype=np.uint8).reshape(20, 20), "a mask of two values expected, this is another image"),
        (LESION[:-1], r"mask of \(19, 20\) px"),
    ],
)
def test_a_mask_that_is_none_is_refused(tmp_path, mask, sentence):
    with pytest.raises(DatasetError, match=sentence):
        masked(tmp_path, mask)


@pytest.mark.parametrize(
    ("circle", "sentence"), [("500,500,3", "has no place inside the image"), ("10,10,90", "covers 100%")]
)
def test_a_circle_outside_the_image_or_around_it_is_refused(tmp_path, circle, sentence):
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"image,spacing_mm,kind,row,col,radius\na.png,0.4,mass,{circle}\n")
    dataset = Dataset(str(tmp_path))
    (exam,) = dataset.exams()
    with pytest.raises(DatasetError, match=sentence):
        dataset.lesion_mask(exam, exam.lesions[0])


@pytest.mark.parametrize(
    ("pattern", "patients"),
    [
        (r"([^/]+)_[LR]_", {"pat0", "pat1"}),
        (r"pat\d", {"pat0", "pat1"}),
        ("", {"pat0_L_MLO", "pat0_R_MLO", "pat1_L_MLO"}),
    ],
)
def test_patients_are_found_in_names(tmp_path, pattern, patients):
    for name in ("pat0_L_MLO", "pat0_R_MLO", "pat1_L_MLO"):
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / f"{name}.png")
    found = Dataset(str(tmp_path), spacing_mm=0.4, patient_from=pattern).exams()
    assert {exam.patient_id for exam in found} == patients


@pytest.mark.parametrize(
    ("pattern", "sentence"), [("(", "is no regular expression"), ("([^/]+)_CC", "finds no patient in it")]
)
def test_a_pattern_that_finds_no_patient_is_said(tmp_path, pattern, sentence):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "a_MLO.png")
    with pytest.raises((DatasetError, OptionError), match=sentence):
        Dataset(str(tmp_path), spacing_mm=0.4, patient_from=pattern).exams()


def test_what_is_neither_image_nor_label_is_listed_by_its_content(folder):
    (folder / "b" / "IMG7").write_bytes((folder / "a.png").read_bytes())  # no ending, an image all the same
    (folder / "more.zip").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    (folder / "CD001").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 100)
    (folder / "gone").symlink_to(folder / "nowhere")
    found, left_out = Dataset(str(folder), spacing_mm=0.1).listed()
    assert "b/IMG7" in {exam.exam_id for exam in found}
    assert {Path(one.url).name: one.reason for one in left_out} == {
        "CD001": "DICOM: the data set dicom reads it",
        "gone": "a dead link",
        "more.zip": "an archive: unpack it",
        "notes.txt": "neither image nor label",
    }


def test_a_folder_of_an_archive_alone_says_so(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(DatasetError, match=r"no image in this folder, .*: an archive: unpack it"):
        Dataset(str(tmp_path), spacing_mm=0.1).exams()


IMAGE, TRUTH = np.full((6, 8), 7, np.uint8), np.pad(np.full((2, 3), 255, np.uint8), ((1, 3), (4, 1)))
CATEGORIES = {
    "MVTec AD": (
        ("train/good/000", "test/good/000", "test/crack/000", "test/crack/001"),
        ("ground_truth/crack/000_mask",),
        {"train/good/000": False, "test/good/000": False, "test/crack/000": True, "test/crack/001": True},
        {"test/crack/000": "crack"},
    ),
    "BMAD": (
        ("train/good/1", "valid/Ungood/img/1", "test/good/img/1", "test/Ungood/img/1"),
        ("valid/Ungood/label/1", "test/Ungood/label/1", "test/good/label/1"),
        {"train/good/1": False, "valid/Ungood/img/1": True, "test/good/img/1": False, "test/Ungood/img/1": True},
        {"valid/Ungood/img/1": "ungood", "test/Ungood/img/1": "ungood"},
    ),
}


@pytest.mark.parametrize("within", ["", "bottle/"])
@pytest.mark.parametrize(("images", "masks", "labels", "located"), CATEGORIES.values(), ids=CATEGORIES)
def test_folders_of_good_and_bad_images_with_masks_are_read_as_such(tmp_path, within, images, masks, labels, located):
    for names, pixels in ((images, IMAGE), (masks, TRUTH)):
        for name in names:
            path = tmp_path / f"{within}{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels))
    dataset = Dataset(str(tmp_path), spacing_mm=0.1)
    found = exams(dataset)
    assert {name: exam.anomalous for name, exam in found.items()} == {within + name: of for name, of in labels.items()}
    lesions = {name: exam.lesions[0] for name, exam in found.items() if exam.lesions and exam.lesions[0].located}
    assert {name: lesion.kind for name, lesion in lesions.items()} == {within + name: k for name, k in located.items()}
    for name, lesion in lesions.items():
        np.testing.assert_array_equal(dataset.lesion_mask(found[name], lesion), TRUTH > 0)


def test_boxes_and_polygons_are_lesions(folder):
    dataset = labels(
        folder,
        'image,kind,left,top,right,bottom,polygon\na.png,mass,3,1,5,2,\na.png,mass,,,,,"[[1, 1], [6, 1], [1, 4.0]]"\n',
    )
    exam = exams(dataset)["a"]
    box, triangle = (dataset.lesion_mask(exam, lesion) for lesion in exam.lesions)
    rows, columns = np.indices((6, 8))
    np.testing.assert_array_equal(box, (rows >= 1) & (rows <= 2) & (columns >= 3) & (columns <= 5))
    inside = (columns >= 1) & (rows >= 1) & ((columns - 1) / 5 + (rows - 1) / 3 <= 1)  # by the three lines
    assert (triangle | ~inside).all()
    near = (columns >= 1) & (rows >= 1) & ((columns - 1.5) / 5 + (rows - 1.5) / 3 <= 1)  # its outline is drawn too
    assert (near | ~triangle).all()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("5,1,3,2,", "a.png: a box from left 5 to right 3, top 1 to 2"),
        ("5,1,,2,", "right '' is not a number"),
        (",,,,1 2 3 4", "a polygon is column and row of three corners or more, not '1 2 3 4'"),
        (",,,,1 2 3 4 5", "three corners or more"),
        (",,,,1 2 3 4 x 6", "three corners or more"),
        (",,,,1 2 3 4 5 1e9", "three corners or more"),
    ],
)
def test_an_outline_that_is_none_is_explained(folder, cells, message):
    with pytest.raises(DatasetError, match=message):
        labels(folder, f"image,left,top,right,bottom,polygon\na.png,{cells}\n").exams()
