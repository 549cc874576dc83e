"""How like real lesions the drawn ones are: size, contrast and texture of both, as a detector's picture shows them.

    python benchmarks/realism.py --source mini-mias

Real are all masses and calcifications of mini-MIAS that have a place, by the circle of the label; drawn are those in
patches of healthy training patients, by the circle of the same area, of specks the one that holds them. Contrast is the
mean inside the circle minus the mean of a ring around it (1.2 to 1.8 radii), texture the standard deviation inside over
that of the ring, peak the highest pixel inside minus the ring's 99 % quantile; in full scales of the picture. AUC: how
well the number alone tells real from drawn (0.5: not at all); all: a logistic regression on the four, a tenth of the
lesions left out in turn.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rayad import catalog
from rayad.datasets.splits import assign
from rayad.errors import RayadError
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.spacing import resample
from rayad.models._lesions import NUMBERS, SHARE, with_lesions
from rayad.options import Settings
from rayad.patches.sample import Sampling, choose, cut
from rayad.pipeline.score import source_of
from rayad.recipes import DRAWN

RESULTS = Path(__file__).parent / "results" / "realism.json"
FIGURES = ("radius, mm", "contrast", "texture", "peak")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    source: str
    """Folder or URL of mini-MIAS."""
    patches: int = 20
    """Healthy patches an image into which lesions are drawn."""


def figures(pixels: np.ndarray, mask: np.ndarray, spacing_mm: float, *, whole: bool) -> tuple[float, ...] | None:
    """The four of one lesion; None where its ring has no tissue.

    Args:
        whole: a region without gaps, of whose area the circle is; else the circle goes through its farthest pixel.
    """
    row, column = np.argwhere(mask).mean(0)
    farthest = np.hypot(*(np.argwhere(mask) - [row, column]).T).max()
    radius = np.sqrt(mask.sum() / np.pi) if whole else farthest + 0.5
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    distance = np.hypot(y - row, x - column) / radius
    inside, ring = pixels[distance <= 1], pixels[(distance > 1.2) & (distance <= 1.8)]
    if len(inside) < 4 or len(ring) < 4 or ring.std() == 0:
        return None
    peak = inside.max() - np.quantile(ring, 0.99)
    return radius * spacing_mm, inside.mean() - ring.mean(), inside.std() / ring.std(), float(peak)


def real(options: Options, kind: str, picture: Preprocessing) -> Iterator[tuple[float, ...]]:
    """Of each labelled lesion of a kind."""
    dataset = catalog.configure("datasets", "mias", {"source": options.source})
    for exam in dataset.exams():
        for lesion in exam.lesions:
            if lesion.kind != kind:
                continue
            try:
                mask = dataset.lesion_mask(exam, lesion)
                prepared = picture.prepare(source_of(dataset, exam))
            except RayadError:
                continue  # a label without a place
            small = resample(mask.astype(np.float32), exam.spacing_mm, picture.spacing_mm) > 0.5
            if small.any() and (found := figures(prepared.pixels, small, picture.spacing_mm, whole=True)):
                yield found


def drawn(options: Options, settings: Settings, picture: Preprocessing) -> Iterator[tuple[float, ...]]:
    """Of each lesion that is drawn into patches of healthy training patients."""
    dataset = catalog.configure("datasets", "mias", {"source": options.source})
    exams, config = dataset.exams(), catalog.configure("models", "synthetic_lesions", settings)
    splits = assign(exams)
    patches = []
    for exam in (exam for exam in exams if splits[exam.exam_id] == "train"):
        prepared = picture.prepare(source_of(dataset, exam))
        sampling = Sampling(options.patches, contour=0.2)
        rows, columns, _ = choose(prepared.body, prepared.tissue, sampling, exam.exam_id)
        patches.append(cut(prepared.pixels, rows, columns))
    x = torch.from_numpy(np.concatenate(patches))[:, None]
    u = torch.rand(len(x), NUMBERS, generator=torch.Generator().manual_seed(0))
    u[:, 0] *= SHARE  # all get one
    contrast = config.faintest, config.brightest
    foreign = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    pixels, masks = with_lesions(x, foreign, u, config.lesions, config.largest_px, contrast)
    for patch, mask in zip(pixels[:, 0].numpy(), masks.numpy() > 0, strict=True):
        if mask.any() and (found := figures(patch, mask, picture.spacing_mm, whole=config.lesions == "masses")):
            yield found


def compared(some: np.ndarray, others: np.ndarray) -> dict[str, object]:
    """Quartiles of both, and AUCs."""
    x, y = np.concatenate([some, others]), np.repeat([1, 0], [len(some), len(others)])
    rows: dict[str, object] = {"real": len(some), "drawn": len(others)}
    for i, name in enumerate(FIGURES):
        quartiles = [np.quantile(values[:, i], (0.25, 0.5, 0.75)).round(3).tolist() for values in (some, others)]
        rows[name] = {"real": quartiles[0], "drawn": quartiles[1], "auc": float(roc_auc_score(y, x[:, i]))}
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    rows["all"] = {"auc": float(roc_auc_score(y, cross_val_predict(model, x, y, cv=10, method="decision_function")))}
    return rows


def main(options: Options) -> None:
    """Print and keep."""
    rows = {}
    for kind, name in (("mass", "unet-masses"), ("calcification", "unet-specks")):
        picture, settings, _ = DRAWN[name]
        measured = real(options, kind, picture), drawn(options, settings, picture)
        rows[kind] = compared(*(np.array(list(lesions)) for lesions in measured))
        print(kind, json.dumps(rows[kind], indent=1), flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
