"""Cross-fitting: what runs of one recipe, each with another fold of the healthy patients, say together."""

from collections.abc import Sequence
from dataclasses import replace

from rayad import storage
from rayad.datasets.exam import Exam
from rayad.datasets.splits import LEARNING, Division, assign
from rayad.errors import OptionError
from rayad.evaluation import cross_fit, report
from rayad.evaluation.results import Results, read
from rayad.terminal import say


def announce(exams: Sequence[Exam], divisions: Sequence[Division]) -> None:
    """Say beforehand which difference so many patients can show.

    Args:
        divisions: of the patients, one a fold.

    Raises:
        OptionError: a fold leaves no healthy patient to a split that its division gives a share.
    """
    for number, division in enumerate(divisions):
        splits = set(assign((replace(exam, split="") for exam in exams), division).values())
        if missing := [split for split in LEARNING if getattr(division, split) and split not in splits]:
            raise OptionError(
                f"fold {number} of {len(divisions)} leaves no healthy patient for {' and '.join(missing)}: take fewer "
                "folds or other --shares"
            )
    diseased = {exam.patient_id for exam in exams if exam.anomalous}
    healthy = {exam.patient_id for exam in exams if exam.anomalous is False} - diseased
    if diseased and healthy:
        least = cross_fit.detectable(len(diseased), len(healthy))
        say(
            f"{len(divisions)} folds of {len(healthy)} healthy patients, against {len(diseased)} diseased ones: an "
            f"exam AUC of 0.70 is told from {0.7 + least:.2f} in four of five repetitions (p < 0.05)"
        )


def add_folds(url: str, fold_urls: Sequence[str]) -> None:
    """Add to a report what the reports of folds say together, and write it anew unless that stands there.

    Args:
        url: folder of the report, of detectors that learned from all patients.
        fold_urls: folders of the reports of the folds, with the same detectors.
    """
    results, folds = _results(url), [_results(fold_url) for fold_url in fold_urls]
    requests = [fold.request for fold in folds]
    if results.folds == requests:
        return
    detectors = list(dict.fromkeys(row["detector"] for row in results.rows))
    kinds = list(dict.fromkeys(row["lesion"] for row in results.rows))
    pairs = list(dict.fromkeys((row["a"], row["b"]) for row in results.comparisons))
    joined = replace(
        results,
        folds=requests,
        cross_fit=cross_fit.rows(folds, detectors, kinds),
        cross_fit_comparisons=cross_fit.comparisons(folds, pairs, kinds),
    )
    report.write(joined, url)


def _results(url: str) -> Results:
    results_url = storage.join(url, "results.json")
    return read(storage.read_json(results_url), results_url)
