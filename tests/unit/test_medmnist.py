"""MedMNIST: the real file, made ones, and what is none; small images as a patch each."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayad.datasets import medmnist
from rayad.datasets.exam import Images, source_of
from rayad.datasets.splits import assign
from rayad.errors import DatasetError, ImageError, OptionError
from rayad.imaging.picture import Source
from rayad.imaging.square import Preprocessing


def made(path: Path, shape: tuple[int, ...] = (28, 28)) -> Path:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 40), ("val", 6), ("test", 9)):
        arrays[f"{part}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = random.integers(0, 3, (count, 1), dtype=np.uint8)
    arrays["test_images"][0] = arrays["train_images"][0]
    np.savez(path, **arrays)
    return path


@pytest.fixture(autouse=True)
def nothing_remembered():
    medmnist._parts.cache_clear()


def test_images_of_healthy_classes_and_others(tmp_path):
    dataset = medmnist.Dataset(str(made(tmp_path / "a.npz")), healthy=(0, 2))
    assert isinstance(dataset, Images)
    exams = {exam.exam_id: exam for exam in dataset.exams()}
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(dataset.pixels(exams["val-000003"]) * 255, arrays["val_images"][3])
        assert exams["train-000007"].anomalous == (arrays["train_labels"][7, 0] == 1)
    assert len(exams) == 55
    assert exams["test-000000"].patient_id == exams["train-000000"].patient_id
    with pytest.raises(DatasetError, match="labels of whole images"):
        dataset.lesion_mask(exams["val-000003"], next(e for e in exams.values() if e.anomalous).lesions[0])


def test_labels_may_be_left_out(tmp_path):
    path = str(made(tmp_path / "a.npz"))
    kept = medmnist.Dataset(path, labelled=(0, 1)).exams()
    assert len(kept) < 55
    assert {lesion.finding for exam in kept for lesion in exam.lesions} == {"1"}
    with pytest.raises(OptionError, match=r"no image has a label of healthy=\(7,\)"):
        medmnist.Dataset(path, healthy=(7,)).exams()


def test_what_is_no_such_file_is_said(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 nothing")
    np.savez(tmp_path / "b.npz", train_images=np.zeros((2, 28, 28), np.uint8))
    for name, content in (("c", np.zeros(2)), ("d", np.array([{}]))):
        arrays: dict[str, Any] = {f"{p}_{k}": content for p in medmnist.PARTS for k in ("images", "labels")}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    for name in "abcd":
        with pytest.raises(DatasetError, match="an npz of MedMNIST expected"):
            medmnist.Dataset(str(tmp_path / f"{name}.npz")).exams()


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10**6), at=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5))
def test_damage_is_an_error_of_the_data_set(tmp_path_factory, cut, at):
    path = made(tmp_path_factory.getbasetemp() / "whole.npz")
    data = bytearray(path.read_bytes())
    data = data[: 1 + cut % (2 * len(data))]
    for position, value in at:
        data[position % len(data)] = value
    path.write_bytes(bytes(data))
    medmnist._parts.cache_clear()
    message = ""
    try:
        medmnist.Dataset(str(path)).exams()
    except (DatasetError, OptionError) as error:  # any other error fails the test
        message = str(error)
    assert not message or str(path) in message


def test_a_small_image_becomes_a_patch():
    ramp = np.linspace(0, 1, 28 * 28, dtype=np.float32).reshape(28, 28)
    prepared = Preprocessing().prepare(Source(ramp, 1.0))
    assert prepared.pixels.shape == (64, 64)
    assert prepared.tissue.all()
    np.testing.assert_allclose(prepared.pixels.mean(), ramp.mean(), atol=0.01)
    with pytest.raises(ImageError, match="in colour expected"):
        Preprocessing(colour=True).prepare(Source(ramp, 1.0))
    with pytest.raises(OptionError, match="at least 32"):
        Preprocessing(side_px=28)


def test_the_real_pneumonia_images(real_data):
    dataset = medmnist.Dataset(str(real_data / "medmnist/pneumoniamnist.npz"))
    exams = dataset.exams()
    assert len(exams) == 4708 + 524 + 624
    assert Counter(exam.anomalous for exam in exams) == {False: 1214 + 135 + 234, True: 3494 + 389 + 390}
    splits = assign(exams)
    owners: dict[str, set[str]] = {}
    for exam in exams:
        owners.setdefault(exam.patient_id, set()).add(splits[exam.exam_id])
    assert all(len(of) == 1 for of in owners.values())
    assert 0.1 < Preprocessing().prepare(source_of(dataset, exams[0])).pixels.mean() < 0.9
