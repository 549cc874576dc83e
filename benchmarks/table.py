"""The README's table from a results.json.

python benchmarks/table.py out/report/results.json
"""

import json
import sys
from pathlib import Path

COLUMNS = {
    "pixel AUC": ("pixel_auc", "value", 2),
    "with healthy images": ("pixel_auc_with_healthy", "value", 2),
    "image-wise AUC": ("image_wise_auc", "mean", 2),
    "exam AUC": ("exam_auc", "value", 2),
    "Hausdorff, px": ("hausdorff_px", "mean", 0),
}


def cell(figure: dict, key: str, digits: int) -> str:
    """A figure, its standard deviation over images where it is a mean, and its 95 % interval."""
    if figure[key] is None:
        return "-"
    text = f"{figure[key]:.{digits}f}"
    if key == "mean" and figure.get("std") is not None:
        text += f" ± {figure['std']:.{digits}f}"
    if figure.get("low") is None:
        return text
    return f"{text} ({figure['low']:.{digits}f}-{figure['high']:.{digits}f})"


def table(results: dict, lesion: str) -> str:
    """Markdown: a row a detector."""
    rows = [row for row in results["rows"] if row["lesion"] == lesion]
    head = f"**{lesion}**: {rows[0]['images']} images of {rows[0]['patients']} patients"
    lines = [head, "", "| detector | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        cells = [cell(row[name], key, digits) for name, key, digits in COLUMNS.values()]
        lines.append(f"| {row['detector']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    kinds = dict.fromkeys(row["lesion"] for row in found["rows"])
    print("\n\n".join(table(found, kind) for kind in kinds))
