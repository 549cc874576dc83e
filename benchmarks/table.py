"""docs/benchmark.md's table of detectors from a results.json: a row a detector, all kinds of lesion side by side.

python benchmarks/table.py out/report/results.json
"""

import json
import sys
from pathlib import Path
from typing import Any

FIGURES = {
    "mass": ("pixel_auc", "image_wise_auc", "hausdorff_px"),
    "calcification": ("pixel_auc", "image_wise_auc", "hausdorff_px"),
    "distortion": ("pixel_auc",),
    "asymmetry": ("pixel_auc",),
    "malignant": ("image_auc",),
}
"""Kind of lesion -> its columns, in the order of Dietrichstein et al. 2022, table 1."""
CALLED = {
    "pixel_auc": "pixel AUC",
    "image_wise_auc": "image-wise AUC",
    "hausdorff_px": "HD, px",
    "image_auc": "image AUC",
}


def cell(row: dict[str, Any], figure: str) -> str:
    """A figure with its 95 % interval, or its standard deviation over images."""
    found = row[figure]
    value = found.get("value", found.get("mean"))
    if value is None:
        return "-"
    if figure == "hausdorff_px":
        return f"{value:.1f}"
    text = f"{value:.2f}"
    if figure == "image_wise_auc":
        return text + (f" ± {found['std']:.2f}" if found.get("std") is not None else "")
    return text if found.get("low") is None else f"{text} ({found['low']:.2f}-{found['high']:.2f})"


def spread(results: dict[str, Any], detector: str, lesion: str) -> str:
    """Standard deviation of the first figure over the seeds."""
    for row in results.get("seeds", ()):
        if (row["detector"], row["lesion"]) == (detector, lesion):
            deviation = row[FIGURES[lesion][0]]["std"]
            return "" if deviation is None else f"{deviation:.3f}"
    return ""


def table(results: dict[str, Any]) -> str:
    """Markdown; the groups of the recipe are rows of their own."""
    rows = {(row["detector"], row["lesion"]): row for row in results["rows"]}
    kinds = list(dict.fromkeys(lesion for _, lesion in rows))
    seeds = bool(results.get("seeds"))
    head = ["detector"]
    for kind in kinds:
        of = rows[next(key for key in rows if key[1] == kind)]
        head += [f"{kind} ({of['images'] + of['images_without_place']} images): {CALLED[FIGURES[kind][0]]}"]
        head += [CALLED[figure] for figure in FIGURES[kind][1:]]
        head += ["sd of seeds"] * (seeds and kind in ("mass", "calcification", "malignant"))
    lines = ["| " + " | ".join([*head, "training, min", "scoring, s"]) + " |", "|---" * (len(head) + 2) + "|"]
    group = ""
    for detector in dict.fromkeys(detector for detector, _ in rows):
        if results["groups"].get(detector) != group:
            group = results["groups"].get(detector, "")
            lines.append(f"| *{group}* |" + " |" * (len(head) + 1))
        cells = [detector]
        for kind in kinds:
            cells += [cell(rows[detector, kind], figure) for figure in FIGURES[kind]]
            cells += [spread(results, detector, kind)] * (seeds and kind in ("mass", "calcification", "malignant"))
        cost = results["costs"][detector]
        lines.append("| " + " | ".join([*cells, f"{cost['train_minutes']:.1f}", f"{cost['score_seconds']:.2f}"]) + " |")
    return "\n".join(lines)


def cross_fit_table(results: dict[str, Any]) -> str:
    """Markdown of the figures against all healthy patients, and of their comparisons."""
    head = ["detector", "lesion", "diseased, healthy", "exam AUC", "other breast AUC"]
    head += ["sensitivity at 0.05", "false-positive rate at 0.05"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in results["cross_fit"]:
        shares = cell(row, "sensitivity"), cell(row["false_positive_rate"], "0.05")
        figures = cell(row, "exam_auc"), cell(row, "other_breast_auc"), *shares
        numbers = f"{row['diseased']}, {row['healthy']}"
        lines.append(f"| {' | '.join([row['detector'], row['lesion'], numbers, *figures])} |")
    lines += ["", "| difference of exam AUC | lesion | | p | adjusted | detectable |", "|---" * 6 + "|"]
    for row in results["cross_fit_comparisons"]:
        numbers = [f"{row[name]:.{digits}f}" for name, digits in (("p", 3), ("p_holm", 2), ("detectable", 2))]
        difference = f"{row['difference']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"| {' | '.join([row['a'] + ' - ' + row['b'], row['lesion'], difference, *numbers])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    print(table(found))
    if found.get("cross_fit"):
        print(f"\n{cross_fit_table(found)}")
