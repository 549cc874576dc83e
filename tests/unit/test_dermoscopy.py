"""Dermoscopic images: the colour of the light, the rim of the lens, and both layouts of the archive."""

import io

import numpy as np
import pytest
from PIL import Image

from rayad import storage
from rayad.datasets import folder, isic
from rayad.datasets.splits import assign
from rayad.errors import DatasetError, ImageError, OptionError
from rayad.imaging.dermoscopy import Preprocessing, find_skin
from rayad.imaging.picture import Source, described, from_description
from rayad.patches.corpus import Ingest, exam_patches
from rayad.patches.sample import Sampling, choose, cut


def scene(side: int = 96) -> np.ndarray:
    """Grey cards of many reflectances with a brown spot."""
    random = np.random.default_rng(0)
    cards = np.repeat(random.uniform(0.3, 0.7, (side, side, 1)), 3, axis=2)
    cards[40:50, 40:50] = (0.35, 0.25, 0.2)
    return cards.astype(np.float32)


@pytest.mark.parametrize("constancy", ["gray-world", "shades-of-gray"])
def test_grey_cards_under_coloured_light_become_grey_again(constancy):
    """Truth by construction: reflectance times light, one factor a channel."""
    light = np.array([1.2, 0.9, 0.8], np.float32)
    seen = Preprocessing(constancy=constancy).prepare(Source(scene() * light, 1.0)).pixels
    under_white = Preprocessing(constancy=constancy).prepare(Source(scene(), 1.0)).pixels
    away = np.abs(seen / seen.mean() - under_white / under_white.mean())
    assert away.max() < 0.02
    uncorrected = Preprocessing(constancy="none").prepare(Source(scene() * light, 1.0)).pixels
    assert np.ptp(uncorrected[:20, :20].mean((0, 1))) > 0.15


def test_the_rim_of_the_lens_is_no_skin_but_a_dark_lesion_is():
    image, (y, x) = scene(128), np.ogrid[:128, :128]
    inside = (y - 64) ** 2 + (x - 64) ** 2 < 60**2
    image[~inside] = 0.02
    image[60:70, 60:70] = 0.03
    assert np.array_equal(find_skin(image), inside)


def test_an_image_of_any_size_is_drawn_into_the_square():
    prepared = Preprocessing(side_px=80).prepare(Source(np.full((150, 200, 3), 0.5, np.float32), 1.0))
    assert prepared.pixels.shape == (80, 80, 3)
    assert prepared.stored.shape == (80, 80)
    assert prepared.pixels == pytest.approx(0.5, abs=1e-6)
    assert from_description(described(Preprocessing(side_px=80))) == Preprocessing(side_px=80)


def test_an_image_of_a_patchs_size_is_one_patch():
    prepared = Preprocessing().prepare(Source(scene(64), 1.0))
    places = choose(prepared.body, prepared.tissue, Sampling(1, 0.0, where="centre"), "x")
    assert np.array_equal(cut(prepared.pixels, *places[:2])[0], prepared.pixels)


def test_images_and_options_that_do_not_fit_are_refused():
    with pytest.raises(ImageError, match="three channels, this one is grey"):
        Preprocessing().prepare(Source(np.full((90, 90), 0.5, np.float32), 1.0))
    with pytest.raises(ImageError, match="dark all over"):
        Preprocessing().prepare(Source(np.zeros((90, 90, 3), np.float32), 1.0))
    with pytest.raises(OptionError, match="at least 32, not 24"):
        Preprocessing(side_px=24)
    with pytest.raises(OptionError, match="one centre, not 120 patches"):
        Sampling(where="centre")


def write(url: str, value: int = 120) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((70, 90, 3), (value, 100, 80), np.uint8)).save(buffer, "PNG")
    storage.write_bytes(url, buffer.getvalue())


def test_folders_of_benign_and_malignant_images_below_train_and_test(tmp_path):
    names = ("train/Benign/a_1", "train/Benign/a_2", "train/Malignant/a_1", "test/Benign/a_3", "test/Malignant/a_2")
    for path in names:
        write(f"{tmp_path}/{path}.png")
    exams = isic.Dataset(str(tmp_path)).exams()
    assert [exam.exam_id for exam in exams] == sorted(names)
    assert [exam.anomalous for exam in exams] == ["Malignant" in name for name in sorted(names)]
    splits = assign(exams)
    assert {name for name, split in splits.items() if split == "test"} == {"test/Benign/a_3", "test/Malignant/a_2"}
    assert splits["train/Malignant/a_1"] == "development"


def test_copies_are_one_patient_below_train_and_test_too(tmp_path):
    for path in ("train/benign/ISIC_0000512.png", "test/benign/ISIC_0000477.png", "test/malignant/a.png"):
        write(f"{tmp_path}/{path}")
    assert assign(isic.Dataset(str(tmp_path)).exams())["train/benign/ISIC_0000512"] == "unused"


def test_folders_of_benign_and_malignant_images(tmp_path):
    for path in ("benign/ISIC_0000477.png", "benign/ISIC_0000512.png", "malignant/ISIC_0000280.png"):
        write(f"{tmp_path}/{path}")
    exams = isic.Dataset(str(tmp_path)).exams()
    assert [(e.exam_id, e.anomalous, e.patient_id) for e in exams] == [
        ("ISIC_0000280", True, "ISIC_0000279"),
        ("ISIC_0000477", False, "ISIC_0000477"),
        ("ISIC_0000512", False, "ISIC_0000477"),
    ]
    assert isic.Dataset(str(tmp_path)).pixels(exams[0])[0, 0] == pytest.approx([120 / 255, 100 / 255, 80 / 255])
    assert len({assign(exams)[e.exam_id] for e in exams[1:]}) == 1


def test_a_table_of_diagnoses(tmp_path):
    table = "isic_id,lesion_id,dx\nA,L1,nv\nB,L1,nv\nC,L2,mel\n"
    for name in "ABC":
        write(f"{tmp_path}/images/{name}.png")
    storage.write_bytes(f"{tmp_path}/labels.csv", table.encode())
    exams = isic.Dataset(str(tmp_path)).exams()
    assert [(e.patient_id, e.anomalous, [lesion.finding for lesion in e.lesions]) for e in exams] == [
        ("L1", False, []),
        ("L1", False, []),
        ("L2", True, ["mel"]),
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("isic_id\nA\n", "no column dx"),
        ("isic_id,dx\nA,scc\n", "no diagnosis 'scc'"),
        ("isic_id,dx\nA,nv\nB,nv\n", "names images that are not there: B"),
    ],
)
def test_a_table_that_is_wrong_is_answered_in_a_sentence(tmp_path, table, said):
    write(f"{tmp_path}/images/A.png")
    storage.write_bytes(f"{tmp_path}/labels.csv", table.encode())
    with pytest.raises(DatasetError, match=said):
        isic.Dataset(str(tmp_path)).exams()


def test_a_folder_without_either_layout_is_answered_in_a_sentence(tmp_path):
    with pytest.raises(DatasetError, match=r"wanted labels\.csv, or images in benign and malignant"):
        isic.Dataset(str(tmp_path)).exams()


def test_any_folder_may_hold_colours(tmp_path):
    write(f"{tmp_path}/a.png")
    dataset = folder.Dataset(str(tmp_path), colour=True, healthy=True)
    (exam,) = dataset.exams()
    assert (exam.spacing_mm, dataset.pixels(exam).shape) == (1.0, (70, 90, 3))
    with pytest.raises(ImageError, match="a grey image is wanted"):
        folder.Dataset(str(tmp_path), spacing_mm=0.2).pixels(exam)


def test_patches_of_colour_images_have_an_index(tmp_path):
    for name in ("benign", "malignant"):
        (tmp_path / name).mkdir()
        Image.fromarray((scene() * 255).astype(np.uint8)).save(tmp_path / name / f"{name}.png")
    dataset = isic.Dataset(str(tmp_path))
    settings = Ingest(Preprocessing(side_px=96), Sampling(5, 0.0))
    patches, index, _ = exam_patches(dataset, dataset.exams()[0], settings)
    assert patches.shape == (5, 64, 64, 3)
    assert len(index) == 5
    assert set(index["reflected"]) <= {True, False}
