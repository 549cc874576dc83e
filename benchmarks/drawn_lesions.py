"""A recipe for what learning to find drawn lesions brings, beside floors and circuits, alone and together.

    rayad benchmark benchmarks/drawn_lesions.py --source mini-mias --split label-free --seeds 3 --out drawn

How like real lesions the drawn ones are: benchmarks/realism.py.
"""

from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Recipe, Run
from rayad.recipes import PLACE_SMOOTH_MM, WIDE, drawn_lesions
from rayad.scoring.detector import Detector


def ablation(run: Run) -> list[Detector]:
    """Each ingredient as a row."""
    tissue = run.corpus(Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=2048))
    specks = run.corpus(
        Ingest(Preprocessing(spacing_mm=0.2, intensity="specks"), Sampling(), shard_patches=2048), "specks"
    )
    learns = TrainRequest("cae", schedule=Schedule(epochs=6))
    plain = [
        run.floor(tissue, "relative-brightness", "relative-maximum", WIDE),
        run.floor(specks, "top-hat", "fine-top-hat"),
        run.ask(run.fit(tissue, run.train(tissue, learns), DensityRequest()), "cae-spn"),
        run.ask(run.fit(specks, run.train(specks, learns), DensityRequest()), "specks-cae-spn"),
        *drawn_lesions(run),
    ]
    adjusted = run.adjust({f"{detector.name}-place": (detector, PLACE_SMOOTH_MM) for detector in plain})
    table = {detector.name: detector for detector in [*plain, *adjusted]}

    def together(name: str, *members: str) -> Detector:
        return run.combine(name, "fisher", [table[member] for member in members])

    return [
        *table.values(),
        together("floor-and-circuit", "relative-maximum-place", "cae-spn-place"),
        together("floor-and-unet", "relative-maximum-place", "unet-masses"),
        together("masses-together", "relative-maximum-place", "unet-masses", "cae-spn-place"),
        together("specks-floor-and-circuit", "fine-top-hat-place", "specks-cae-spn-place"),
        together("specks-floor-and-unet", "fine-top-hat-place", "unet-specks-place"),
        together("specks-together", "fine-top-hat-place", "unet-specks-place", "specks-cae-spn-place"),
    ]


RECIPE = Recipe(
    "drawn-lesions",
    ablation,
    dataset="mias",
    kinds=("mass", "calcification", "asymmetry", "distortion"),
    compare=(
        ("unet-masses", "relative-maximum"),
        ("unet-masses", "relative-maximum-place"),
        ("unet-masses", "cae-spn"),
        ("masses-together", "relative-maximum-place"),
        ("unet-specks-place", "fine-top-hat-place"),
        ("specks-together", "fine-top-hat-place"),
        ("specks-together", "specks-cae-spn-place"),
    ),
)
