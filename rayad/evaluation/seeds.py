"""Several trainings of the same detector: how much of a figure is the luck of the seed."""

from collections.abc import Sequence

import numpy as np

from rayad.evaluation.table import Row

FIGURES = {"pixel_auc": "value", "image_wise_auc": "mean", "exam_auc": "value", "image_auc": "value"}
"""Figure of a row -> where its value is."""


def spread(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Mean and standard deviation (n - 1) of each figure over the runs, a row a detector and kind of lesion.

    Args:
        runs: the rows of `table.rows` of every seed. A figure that some run does not define is left out of it.
    """
    rows_by_key: dict[tuple[object, object], list[Row]] = {}
    for row in (row for run in runs for row in run):
        rows_by_key.setdefault((row["detector"], row["lesion"]), []).append(row)
    return [
        {"detector": detector, "lesion": lesion, "seeds": len(rows)}
        | {name: _figure([row[name][key] for row in rows if name in row]) for name, key in FIGURES.items()}  # type: ignore[reportIndexIssue]  figures are dicts
        for (detector, lesion), rows in rows_by_key.items()
    ]


def _figure(values: Sequence[float | None]) -> Row:
    defined = [value for value in values if value is not None]
    if not defined:
        return {"mean": None, "std": None, "values": []}
    return {
        "mean": float(np.mean(defined)),
        "std": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "values": defined,
    }
