"""The images of a patient together, by hand."""

import pytest

from rayad.errors import ImageError
from rayad.heatmaps.answers import ANSWER, STUDY, Answer, Study, StudyImage
from rayad.heatmaps.studies import require_one_patient, study, study_p


def image(score: float, patient_p: float, verdict: str = "") -> StudyImage:
    said = {"score": score, "patient_p_value": patient_p, "verdict": verdict, "patient_images": 2}
    return StudyImage(answer=Answer.model_validate(ANSWER | said))


def test_the_example_is_one():
    assert Study.model_validate(STUDY).images[0].answer == Answer.model_validate(ANSWER)


def test_p_is_that_of_the_highest_image_for_each_group_of_images():
    assert [study_p(0.1, images, 2) for images in (1, 2, 3, 4, 5)] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3])
    assert [study_p(0.1, images, 1) for images in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.3])
    assert study_p(0.4, 6, 2) == 1


def test_a_study_scores_as_its_highest_image_and_counts_those_that_failed():
    images = [image(1.0, 0.8), StudyImage(problem="the image is empty"), image(7.0, 0.1), image(3.0, 0.5)]
    together = study(images)
    assert (together.score, together.p_value, together.failed) == (7.0, 0.2, 1)  # three images, two in each patient
    assert together.p_value_floor == 2 * ANSWER["p_value_floor"]
    assert together.calibration_patients == ANSWER["calibration_patients"]
    assert together.images == tuple(images)
    assert together.verdict == ""


@pytest.mark.parametrize(("verdicts", "said"), [(("normal", "abnormal"), "abnormal"), (("normal",), "normal")])
def test_one_abnormal_image_makes_a_study_abnormal(verdicts, said):
    assert study([image(1.0, 0.5, verdict) for verdict in verdicts]).verdict == said


def test_a_study_without_an_image_that_was_scored_says_what_each_lacks():
    with pytest.raises(ImageError, match="image 1: the image is empty; image 2: no pixel spacing"):
        study([StudyImage(problem="the image is empty"), StudyImage(problem="no pixel spacing")])


def test_the_images_of_two_patients_are_no_study_and_of_unknown_ones_may_be():
    require_one_patient(["a", "", "a"])
    require_one_patient([])
    with pytest.raises(ImageError, match="of one patient; the files name 2"):
        require_one_patient(["a", "", "b"])
