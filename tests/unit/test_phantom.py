"""Phantoms: the same every time, exact masks, textures with the spectrum they promise, sensible difficulty."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from rayad.datasets import phantom_breast, phantom_lesions
from rayad.datasets.exam import Exam, Lesion
from rayad.datasets.phantom import Dataset
from rayad.errors import DatasetError, OptionError

SMALL = Dataset(patients=6, diseased=0.5, height=160, width=120)


def sick(dataset: Dataset) -> list[Exam]:
    return [exam for exam in dataset.exams() if exam.anomalous]


def test_exams_are_two_oblique_views_a_patient():
    exams = SMALL.exams()
    assert [exam.exam_id for exam in exams[:3]] == ["phantom-0-0000-L", "phantom-0-0000-R", "phantom-0-0001-L"]
    assert set(Counter(exam.patient_id for exam in exams).values()) == {2}
    assert {(exam.view, exam.spacing_mm) for exam in exams} == {("MLO", 0.4)}
    assert {exam.density for exam in Dataset(patients=20, diseased=0.0).exams()} == {"F", "G", "D"}


@pytest.mark.parametrize(("patients", "diseased", "wanted"), [(10, 0.3, 3), (7, 0.0, 0), (4, 1.0, 4), (9, 1 / 3, 3)])
def test_the_share_of_diseased_patients_is_exact(patients, diseased, wanted):
    exams = sick(replace(SMALL, patients=patients, diseased=diseased))
    assert len(exams) == len({exam.patient_id for exam in exams}) == wanted


def test_diseased_patients_take_turns_with_the_findings():
    exams = sick(replace(SMALL, patients=12))
    assert [e.lesions[0].finding for e in exams] == ["ROUND", "CLUSTER", "SPICULATED"] * 2
    assert {lesion.kind for exam in exams for lesion in exam.lesions} == {"mass", "calcification"}


def test_an_image_follows_from_seed_and_id_alone():
    exam = sick(SMALL)[0]
    more = pickle.loads(pickle.dumps(replace(SMALL, patients=9)))
    np.testing.assert_array_equal(more.pixels(exam), SMALL.pixels(exam))
    assert SMALL.exams() == [e for e in more.exams() if int(e.patient_id[-4:]) < 6]
    other = replace(SMALL, seed=1)
    assert not np.array_equal(other.pixels(other.exams()[0]), SMALL.pixels(SMALL.exams()[0]))


def test_pixels_are_16_bit_steps_in_0_to_1():
    pixels = SMALL.pixels(SMALL.exams()[0])
    assert pixels.shape == (160, 120)
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < 0.1 < 0.6 < pixels.max() <= 1
    np.testing.assert_array_equal(np.rint(pixels * 65535).astype(np.float32) / np.float32(65535), pixels)
    assert len(np.unique(pixels)) > 4096  # more than 12 bits


def test_the_chest_wall_is_on_the_left_of_a_left_breast():
    for exam in SMALL.exams():
        columns = SMALL.pixels(exam).mean(axis=0)
        assert (columns[:10].mean() > columns[-10:].mean()) == (exam.laterality == "L")


def without_lesions(dataset: Dataset, exam: Exam, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "_lesions", lambda *_: [])
        return dataset.pixels(exam)


def test_a_lesion_changes_the_pixels_of_its_mask_and_no_other(monkeypatch):
    for exam in sick(SMALL):
        changed = SMALL.pixels(exam) != without_lesions(SMALL, exam, monkeypatch)
        mask = np.any([SMALL.lesion_mask(exam, lesion) for lesion in exam.lesions], axis=0)
        assert not changed[~mask].any()
        masses = [lesion for lesion in exam.lesions if lesion.kind == "mass"]
        assert all(changed[SMALL.lesion_mask(exam, lesion)].mean() > 0.95 for lesion in masses)


def test_a_lesion_is_brighter_than_the_same_tissue_without_it(monkeypatch):
    dataset = Dataset(patients=6, diseased=0.5)
    for exam in sick(dataset):
        gain = dataset.pixels(exam) - without_lesions(dataset, exam, monkeypatch)
        for lesion in exam.lesions:
            assert gain[dataset.lesion_mask(exam, lesion)].max() > 0.08  # the noise's deviation is 0.01


def test_the_circle_just_holds_the_mask_and_the_breast_holds_both():
    for exam in sick(SMALL):
        bright = ndimage.gaussian_filter(SMALL.pixels(exam), 2) > 0.05
        for lesion in exam.lesions:
            mask = SMALL.lesion_mask(exam, lesion)
            assert lesion.located
            assert lesion.circle is not None
            row, col, radius = lesion.circle
            away = np.hypot(*(np.argwhere(mask) - (row, col)).T)
            assert away.max() == pytest.approx(radius)
            assert bright[mask].all()


def test_lesions_of_one_patient_lie_in_one_breast():
    exams = replace(SMALL, patients=20, diseased=1.0).exams()
    for left, right in zip(exams[::2], exams[1::2], strict=True):
        assert bool(left.lesions) != bool(right.lesions)


def test_a_cluster_mask_holds_the_tissue_between_the_specks():
    drawing = phantom_lesions.cluster(np.random.default_rng(3), 0.2)
    specks, count = ndimage.label(drawing.contrast > 0.5 * drawing.contrast.max())
    assert count >= 4
    assert drawing.mask[specks > 0].all()
    assert drawing.mask.sum() > 5 * (specks > 0).sum()
    assert ndimage.label(drawing.mask)[1] == 1


def test_sizes_are_mm_whatever_the_spacing():
    for draw in (phantom_lesions.round_mass, phantom_lesions.spiculated_mass):
        areas = [draw(np.random.default_rng(5), s).mask.sum() * s**2 for s in (0.4, 0.2)]
        assert areas[0] == pytest.approx(areas[1], rel=0.1)
    diameter_mm = 2 * phantom_lesions.round_mass(np.random.default_rng(5), 0.2).radius_px * 0.2
    assert 7 < diameter_mm < 22


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_the_texture_has_the_power_spectrum_it_promises(power):
    rng = np.random.default_rng(0)
    spectra = []
    for _ in range(8):
        field = phantom_breast.power_law(rng, (256, 256), 0.4, power, longest_mm=100.0)
        assert field.mean() == pytest.approx(0, abs=1e-5)
        assert field.std() == pytest.approx(1, abs=1e-5)
        window = np.hanning(256)[:, None] * np.hanning(256)
        spectra.append(np.abs(np.fft.fft2(field * window)) ** 2)
    f = np.hypot(np.fft.fftfreq(256, 0.4)[:, None], np.fft.fftfreq(256, 0.4))
    band = (f > 0.08) & (f < 0.8)
    slope = np.polyfit(np.log(f[band]), np.log(np.mean(spectra, axis=0)[band]), 1)[0]
    assert slope == pytest.approx(-power, abs=0.15)


def test_the_muscle_can_be_left_out():
    exam = SMALL.exams()[0]
    corner = SMALL.pixels(exam)[:8, :8].mean()
    assert replace(SMALL, pectoral=False).pixels(exam)[:8, :8].mean() < corner - 0.1


def test_dense_breasts_are_brighter_than_fatty_ones():
    dataset = Dataset(patients=24, diseased=0.0, height=160, width=120)
    brightness = {density: [] for density in "FGD"}
    for exam in dataset.exams()[::2]:
        pixels = dataset.pixels(exam)[70:110]
        brightness[exam.density].append(pixels[pixels > 0.15].mean())
    fatty, mixed, dense = (np.mean(brightness[density]) for density in "FGD")
    assert fatty + 0.03 < mixed < dense - 0.03


def pixel_auc(dataset: Dataset, score, kind: str) -> float:
    """Over places 8 px apart of the breasts that have a lesion of the kind."""
    scores, truth = [], []
    for exam in sick(dataset):
        lesions = [lesion for lesion in exam.lesions if lesion.kind == kind]
        if lesions:
            pixels = dataset.pixels(exam)
            breast = ndimage.uniform_filter(pixels, 9)[4::8, 4::8]
            tissue = (breast > 0.2) & (breast < 0.8)
            mask = np.any([dataset.lesion_mask(exam, lesion) for lesion in lesions], axis=0)[4::8, 4::8]
            scores.append(score(pixels)[4::8, 4::8][tissue])
            truth.append(mask[tissue])
    return float(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))


def test_a_top_hat_finds_calcifications_and_brightness_finds_masses_poorly():
    dataset = Dataset(patients=12, diseased=1.0)
    top_hat = pixel_auc(dataset, lambda p: ndimage.maximum_filter(ndimage.white_tophat(p, 5), 32), "calcification")
    brightness = pixel_auc(dataset, lambda p: ndimage.uniform_filter(p, 64), "mass")
    assert top_hat > 0.9
    assert 0.5 < brightness < 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": 0}, "needs patients"),
        ({"seed": -1}, "seed >= 0"),
        ({"diseased": 1.5}, "0 to 1, not 1.5"),
        ({"width": 40}, "at least 64 x 64 px, not 160 x 40"),
        ({"spacing_mm": 0.0}, "px of 0.0 mm"),
    ],
)
def test_impossible_options_are_explained(options, message):
    with pytest.raises(OptionError, match=message):
        replace(SMALL, **options).exams()


@pytest.mark.parametrize("name", ["phantom-1-0000-L", "phantom-0-0006-L", "mdb001", "phantom-0-0000-X"])
def test_an_exam_of_another_data_set_is_refused(name):
    exam = replace(SMALL.exams()[0], exam_id=name)
    with pytest.raises(DatasetError, match=f"{name}: this phantom has phantom-0-0000-L to phantom-0-0005-R"):
        SMALL.pixels(exam)


def test_a_lesion_of_another_exam_has_no_mask():
    exam = sick(SMALL)[0]
    with pytest.raises(DatasetError, match="no such mass"):
        SMALL.lesion_mask(exam, Lesion("mass", circle=(1.0, 2.0, 3.0)))


def test_the_smallest_and_a_fine_image_can_be_drawn():
    for dataset in (
        Dataset(patients=3, diseased=1.0, height=64, width=64),
        Dataset(patients=1, diseased=1.0, height=600, width=450, spacing_mm=0.3),
    ):
        for exam in dataset.exams():
            assert dataset.pixels(exam).shape == (dataset.height, dataset.width)
            assert all(dataset.lesion_mask(exam, lesion).any() for lesion in exam.lesions)
