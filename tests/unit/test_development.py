"""What a search sees of labelled images: the half for choices, and an AUC that is the Mann-Whitney statistic."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
from scipy import stats

from rayad.datasets import phantom
from rayad.datasets.exam import Exam
from rayad.datasets.splits import Division, assign
from rayad.errors import DatasetError, OptionError
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.detectors import floor_detector
from rayad.pipeline.development import development_of
from rayad.pipeline.ingest import ingest
from rayad.pipeline.score import score
from rayad.pool import Here
from rayad.scoring.calibrate import image_score

IMAGES = phantom.Dataset(patients=40, diseased=0.4, height=256, width=192)
STEP_MM = 12.8


@dataclass(frozen=True)
class OfWholeImages(phantom.Dataset):
    """The same images, with labels and no places."""

    def exams(self) -> list[Exam]:
        return [replace(exam, lesions=()) for exam in super().exams()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    url = str(tmp_path_factory.mktemp("corpus"))
    ingest(Here(), IMAGES, url, Ingest(sampling=Sampling(patches=2)), {"dataset": "phantom"})
    return Corpus.open(url)


def test_no_test_image_is_among_them(corpus):
    splits = assign(IMAGES.exams())
    for dataset, chosen in ((IMAGES, {"development"}), (OfWholeImages(**vars(IMAGES)), {"development", "validation"})):
        development = development_of(dataset, corpus, STEP_MM)
        assert {splits[exam.exam_id] for exam in development.exams} == chosen


def test_the_auc_of_places_is_the_share_of_pairs_in_the_right_order(corpus, tmp_path):
    detector = floor_detector("brightness", "brightness", corpus)
    development = development_of(IMAGES, corpus, STEP_MM)
    scored, _ = score(Here(), [detector], IMAGES, development.exams, STEP_MM, str(tmp_path), "images")
    inside, outside = [], []
    for image in scored:
        if not image.exam.lesions:
            continue
        lesion = np.logical_or.reduce(list(image.truth.values()))
        if (lesion & image.tissue).any():
            inside.append(image.scores["brightness"][lesion & image.tissue])
            outside.append(image.scores["brightness"][image.tissue & ~lesion])
    inside, outside = np.concatenate(inside), np.concatenate(outside)
    statistic = stats.mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside))
    assert development.loss(detector) == pytest.approx(1 - statistic)


def test_the_auc_of_patients_compares_with_healthy_validation(corpus, tmp_path):
    dataset = OfWholeImages(**vars(IMAGES))
    detector = floor_detector("brightness", "brightness", corpus)
    development = development_of(dataset, corpus, STEP_MM)
    assert "patients" in development.objective
    scored, _ = score(Here(), [detector], dataset, development.exams, STEP_MM, str(tmp_path), "images")
    highest: dict[str, float] = {}
    for image in scored:
        value = image_score(image.scores["brightness"])
        highest[image.exam.patient_id] = max(value, highest.get(image.exam.patient_id, -np.inf))
    sick = {image.exam.patient_id for image in scored if image.exam.anomalous}
    pairs = [
        (a > b) + (a == b) / 2 for p, a in highest.items() if p in sick for q, b in highest.items() if q not in sick
    ]
    assert development.loss(detector) == pytest.approx(1 - np.mean(pairs))


def test_other_shares_than_the_corpus_was_made_with_are_refused(corpus):
    others = replace(corpus, manifest=corpus.manifest | {"shares": asdict(Division(train=0.5))})
    with pytest.raises(OptionError, match="learned from the data set divided by --shares"):
        development_of(IMAGES, others, STEP_MM)


def test_a_corpus_with_such_images_mixed_in_is_refused(corpus):
    parameters = corpus.manifest["parameters"] | {"mixed": 0.5}
    with pytest.raises(OptionError, match="images for choices are mixed into it"):
        development_of(IMAGES, replace(corpus, manifest=corpus.manifest | {"parameters": parameters}), STEP_MM)


def test_without_healthy_images_there_is_nothing_to_compare_with(corpus):
    with pytest.raises(DatasetError, match="is healthy and in the validation split"):
        development_of(OfWholeImages(patients=12, diseased=1.0, height=256, width=192), corpus, STEP_MM)
