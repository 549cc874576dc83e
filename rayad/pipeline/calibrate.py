"""Detectors to calibrated detectors: scores of healthy patients that serve nothing else."""

from collections import defaultdict
from collections.abc import Sequence

from rayad.datasets.content import contents
from rayad.datasets.exam import Images
from rayad.datasets.splits import division_of
from rayad.fingerprint import fingerprint
from rayad.pipeline.detectors import identity, require_names, require_shares
from rayad.pipeline.score import exams_to_judge, score
from rayad.pool import Pool
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Detector


def calibrate_detectors(
    pool: Pool,
    detectors: Sequence[Detector],
    dataset: Images,
    step_mm: float,
    url: str,
    max_failures: int = 0,
    split: str = "calibration",
) -> list[Detector]:
    """Give detectors that share their preprocessing their p-values, from healthy patients that serve nothing else.

    Patients whose labels taught one of them are left out, which a line on the terminal says. Where the data set has no
    share of patients for that, validation patients say what healthy scores are, and every p-value is 1.

    Args:
        step_mm: distance of the scored places.
        url: folder for the scores.
        max_failures: images that may fail to be scored; the next call tries them again.
        split: whose images; another than "calibration" is for scores that are combined, not for p-values.
    """
    require_names(detectors)
    require_shares(detectors, dataset)
    for detector in detectors:
        for member in detector.members:
            member.step(step_mm)
    served = split == "calibration" and not division_of(dataset).calibration
    split = "validation" if served else split
    exams, _ = exams_to_judge(dataset, split, detectors)
    exam_contents = contents(dataset, exams)
    requests = [fingerprint([identity(d), step_mm, exam_contents]) for d in detectors]
    if all(
        d.calibration and d.calibration.finding_scores is not None and d.provenance.get("calibrated_on") == request
        for d, request in zip(detectors, requests, strict=True)
    ):
        return list(detectors)
    scored, failures = score(pool, detectors, dataset, exams, step_mm, url, split, max_failures)
    lost = [failure["exam_id"] for failure in failures]
    result = []
    for detector, made_of in zip(detectors, requests, strict=True):
        patients = defaultdict(list)
        for image in scored:
            patients[image.exam.patient_id].append(image.scores[detector.name])
        made_of = fingerprint([made_of, lost]) if lost else made_of  # another: the next call tries them again
        result.append(detector.calibrated(calibrate(patients, served=served), calibrated_on=made_of, step_mm=step_mm))
    return result
