"""A recipe for cross-fitting: floors, an autoencoder and its circuit, as they are and adjusted for the place.

    rayad run benchmarks/cross_fit.py --source mini-mias --split label-free --folds 5 --out cross-fit

The report's page has the table of docs/benchmark.md, "Against all healthy patients".
"""

from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Recipe, Run
from rayad.recipes import PLACE_SMOOTH_MM, WIDE
from rayad.scoring.detector import Detector


def cross_fit(run: Run) -> list[Detector]:
    """Floors, an autoencoder and its circuit, as they are and adjusted for the place."""
    tissue = run.corpus(Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=2048))
    specks = run.corpus(Ingest(Preprocessing(spacing_mm=0.2, intensity="specks"), Sampling(patches=2)), "specks")
    cae = run.train(tissue, TrainRequest("cae", schedule=Schedule(epochs=6)))
    plain = [
        run.floor(tissue, "relative-brightness", "relative-maximum", WIDE),
        run.floor(specks, "top-hat", "fine-top-hat"),
        run.ask(run.fit(tissue, cae, DensityRequest()), "cae-spn"),
    ]
    adjusted = run.adjust({f"{detector.name}-place": (detector, PLACE_SMOOTH_MM) for detector in plain})
    return [*plain, run.ask(cae, "cae"), *adjusted]


RECIPE = Recipe(
    "cross-fit",
    cross_fit,
    dataset="mias",
    kinds=("mass", "calcification", "asymmetry", "distortion"),
    compare=(
        ("cae-spn", "relative-maximum"),
        ("cae-spn-place", "relative-maximum-place"),
        ("cae-spn-place", "cae-spn"),
        ("relative-maximum-place", "relative-maximum"),
        ("fine-top-hat-place", "fine-top-hat"),
    ),
)
