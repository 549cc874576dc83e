"""A recipe that sets DAGAN beside the CAE and a floor: settings of the recipe `detectors`, places 9.6 mm apart.

rayad benchmark benchmarks/dagan.py --source mini-mias --split label-free --seeds 1 --out dagan
"""

from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import TrainRequest
from rayad.pipeline.run import Recipe, Run
from rayad.recipes import WIDE
from rayad.scoring.detector import Detector


def dual_autoencoders(run: Run) -> list[Detector]:
    """DAGAN by what its generator and what its discriminator leaves, a CAE, and the floor of masses."""
    corpus = run.corpus(Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=2048))
    cae = run.train(corpus, TrainRequest("cae", (), Schedule(epochs=6)))
    dagan = run.train(corpus, TrainRequest("dagan", (), Schedule(epochs=8)))
    return [
        run.floor(corpus, "relative-brightness", "relative-maximum", WIDE),
        run.ask(cae, "cae"),
        run.ask(dagan, "dagan"),
        run.ask(dagan, "dagan-discriminator", "discriminator"),
    ]


RECIPE = Recipe(
    "dagan",
    dual_autoencoders,
    dataset="mias",
    kinds=("mass", "calcification"),
    step_mm=9.6,
    compare=(("dagan", "cae"), ("dagan", "relative-maximum"), ("dagan-discriminator", "cae")),
)
