"""Many detectors over the same images: who ranks where, and whose difference means something.

Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006. Patients take the place of his data
sets: each ranks the detectors by its images' mean AUROC. Friedman's test asks whether the ranks differ at all; pairs
are told by Wilcoxon's test, adjusted by Holm (Benavoli, Corani and Mangili 2016 advise against Nemenyi's, whose verdict
on two detectors depends on the others).
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from scipy import stats

from rayad.evaluation import significance
from rayad.evaluation.table import Row

LEVEL = 0.05


def ranks(figures: Mapping[str, Mapping[str, float]]) -> Row:
    """Mean ranks (1 is best), Friedman's p, and the pairs that do not differ at 0.05.

    Args:
        figures: detector -> patient -> the mean AUROC of its images; the same patients for every detector.
    """
    names, patients = list(figures), sorted(next(iter(figures.values()), {}))
    if len(names) < 3 or len(patients) < 3:
        reason = f"ranks need 3 detectors and 3 patients, got {len(names)} and {len(patients)}"
        return {"ranks": {}, "p": None, "alike": [], "patients": len(patients), "reason": reason}
    table = np.array([[figures[name][patient] for name in names] for patient in patients])  # p d
    patient_ranks = np.array([stats.rankdata(-row) for row in table])
    constant = bool((table == table[:, :1]).all())
    p = 1.0 if constant else float(stats.friedmanchisquare(*table.T).pvalue)
    pairs = list(combinations(range(len(names)), 2))
    p_values = [_wilcoxon(table[:, i] - table[:, j]) for i, j in pairs]
    adjusted = significance.holm(p_values)
    alike = [[names[i], names[j]] for (i, j), q in zip(pairs, adjusted, strict=True) if q is None or q > LEVEL]
    mean = patient_ranks.mean(axis=0)
    order = np.argsort(mean, kind="stable")
    return {
        "ranks": {names[i]: float(mean[i]) for i in order},
        "p": p,
        "alike": alike,
        "patients": len(patients),
        "smallest_p": float(min(1.0, 2.0 ** (1 - len(patients)) * len(pairs))),
    }


def _wilcoxon(difference: np.ndarray) -> float | None:
    nonzero = difference[difference != 0]
    return float(stats.wilcoxon(nonzero)[1]) if nonzero.size else None  # type: ignore[reportArgumentType]  (statistic, p)
