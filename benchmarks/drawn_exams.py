"""A recipe for cross-fitting what learned to find drawn masses: is a diseased woman told from a healthy one?

rayad run benchmarks/drawn_exams.py --source mini-mias --split label-free --folds 5 --out drawn
"""

from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.run import Recipe, Run
from rayad.recipes import PLACE_SMOOTH_MM, WIDE, drawn_lesions
from rayad.scoring.detector import Detector


def exams(run: Run) -> list[Detector]:
    """The floor of masses and the network, as they are and adjusted for the place."""
    tissue = run.corpus(Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=2048))
    floor = run.floor(tissue, "relative-brightness", "relative-maximum", WIDE)
    plain = [floor, *drawn_lesions(run, "unet-masses")]
    return [*plain, *run.adjust({f"{detector.name}-place": (detector, PLACE_SMOOTH_MM) for detector in plain})]


RECIPE = Recipe(
    "drawn-exams",
    exams,
    dataset="mias",
    kinds=("mass", "calcification", "asymmetry", "distortion"),
    compare=(("unet-masses", "relative-maximum"), ("unet-masses-place", "relative-maximum-place")),
)
