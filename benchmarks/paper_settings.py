"""What the settings of Dietrichstein et al. 2022 do on mini-MIAS, beside ours: a recipe.

    rayad run benchmarks/paper_settings.py --source mini-mias --out paper --workers.number 2

Autoencoders of 100 epochs at 1e-5 and circuits of 50 epochs of expectation-maximization at 1e-4, on the pixels as they
are at mini-MIAS's own 0.2 mm; the same pictures with our rates and six epochs; and our picture.
"""

from rayad.density.em import PAPER
from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Recipe, Run
from rayad.scoring.detector import Detector

MODELS = ("cae", "bvae")


def beside(run: Run) -> list[Detector]:
    """Mini-MIAS: the autoencoders of Dietrichstein et al. 2022 with their settings and with ours."""
    native = run.corpus(Ingest(Preprocessing(spacing_mm=0.2), Sampling(), shard_patches=2048), "native")
    relative = run.corpus(Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=2048))
    theirs = DensityRequest(settings=("preset=paper",), em=PAPER)
    table = []
    for name in MODELS:
        paper = TrainRequest(name, ("preset=paper",), Schedule(epochs=100, patience=100))
        ours = TrainRequest(name, schedule=Schedule(epochs=6))
        as_paper = run.train(native, paper, f"paper-{name}")
        rates = run.train(native, ours, name)
        picture = run.train(relative, ours)
        table += [
            run.ask(as_paper, f"paper-{name}"),
            run.ask(run.fit(native, as_paper, theirs, "paper"), f"paper-{name}-spn"),
            run.ask(rates, f"native-{name}"),
            run.ask(run.fit(native, rates, DensityRequest()), f"native-{name}-spn"),
            run.ask(picture, name),
            run.ask(run.fit(relative, picture, DensityRequest()), f"{name}-spn"),
        ]
    return table


RECIPE = Recipe("paper-settings", beside, "mias", kinds=("mass", "calcification"), step_mm=3.2)
