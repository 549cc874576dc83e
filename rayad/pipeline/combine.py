"""Several detectors to one whose score combines theirs."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from rayad.datasets.exam import Images
from rayad.errors import OptionError
from rayad.fingerprint import fingerprint
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.detectors import identity, inherited, require_names
from rayad.pool import Pool
from rayad.scoring.combine import RULES
from rayad.scoring.detector import Combined, Detector


def combine(
    pool: Pool,
    name: str,
    rule: str,
    members: Sequence[Detector],
    dataset: Images,
    step_mm: float,
    url: str,
    max_failures: int = 0,
) -> Detector:
    """A detector whose score combines those of others.

    How rare a member's score is, is learned from the validation patients: the calibration patients serve nothing but
    the p-values of what comes out.

    Args:
        url: folder for the members' scores.
        max_failures: images that may fail.

    Raises:
        OptionError: an unknown rule, or two members of one name.
        DatasetError: more images failed.
    """
    if rule not in RULES:
        raise OptionError(f"no rule {rule!r}; detectors are combined by {', '.join(RULES)}")
    require_names(members)
    calibrated = compared_with_healthy(pool, members, dataset, step_mm, url, max_failures)
    origin = {k: members[0].origin(k) for k in ("corpus", "dataset", "seed", "commit", "versions", "machine")}
    request = fingerprint([rule, *[[identity(d), d.origin("calibrated_on")] for d in calibrated]])
    minutes = sum(d.provenance.get("train_minutes", 0.0) for d in members)
    origin |= {"made_of": request, "settings": rule, "train_minutes": minutes} | inherited(
        *(member.provenance for member in members)
    )
    return Detector(name, Combined(rule, tuple(calibrated)), members[0].preprocessing, provenance=origin)


def compared_with_healthy(
    pool: Pool, members: Sequence[Detector], dataset: Images, step_mm: float, url: str, max_failures: int = 0
) -> list[Detector]:
    """The members, each calibrated on the validation patients: by which a score has a rarity, and no p-value.

    Raises:
        DatasetError: more images failed.
    """
    calibrated: list[Detector] = []
    for _, group in groupby(members, key=lambda d: d.preprocessing):
        uncalibrated = [replace(d, calibration=None) for d in group]
        calibrated += calibrate_detectors(pool, uncalibrated, dataset, step_mm, url, max_failures, "validation")
    return calibrated
