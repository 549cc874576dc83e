"""CPU seconds of one thread from the bytes of an image to its heatmap, stage by stage, here and in another checkout.

    python benchmarks/end_to_end.py --images a.dcm mdb001.png --spacing-mm 0.05 0.2 --before ../before --mias mini-mias

Every run is a process of its own that goes through all images twice; the second time counts. Runs of the two checkouts
alternate, and medians are printed and written to benchmarks/results/end_to_end.json. `numbers` is what scores and
p-values need (read, prepare, score, judge, npz), `with overlay` has the picture too, `with counterfactual` the healthy
version too, where it is asked for. Reading is decoding in this process; starting Python and loading torch is not in it.

With --mias a process goes through the stages ingest, calibrate and evaluate too, with a likelihood, a reconstruction
error and a floor, once; seconds of the process that decodes are in them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
import tyro

from rayad import provenance
from rayad.datasets import mias
from rayad.density import spn
from rayad.heatmaps.drawing import Written, arrays_and_picture
from rayad.heatmaps.judgement import judge
from rayad.imaging import dicom, raster
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import Source
from rayad.models import cae
from rayad.patches.corpus import Ingest
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.evaluate import Evaluation, evaluate
from rayad.pipeline.ingest import ingest
from rayad.pool import Here
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor, LatentScore, ModelScore, Part

HERE = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "end_to_end.json"
NUMBERS = ("read", "prepare", "score", "judge", "npz")


@dataclass(frozen=True)
class Options:
    """What is scored, and how often."""

    images: tuple[str, ...]
    """Files."""
    detector: str = ""
    """URL of a calibrated detector; empty: an untrained autoencoder and circuit of the usual size."""
    before: str = ""
    """Folder of another checkout of rayad; empty: none is compared with."""
    mias: str = ""
    """Folder of mini-MIAS; empty: no stages are measured."""
    runs: int = 7
    """Runs that a median is taken over."""
    spacing_mm: tuple[float, ...] = (0.2,)
    """mm a pixel of images that do not state it: of each, or of all."""
    out: Path = RESULTS
    """Where the results are written."""
    measure: bool = False
    """Measure once and print JSON: what the processes are told."""


def untrained() -> Detector:
    """Of the usual size; its heatmaps mean nothing and take as long as those of any other."""
    torch.manual_seed(0)
    model, density = cae.Config(), spn.Config()
    parts = Part("cae", model, model.build().eval()), Part("spn", density, density.build(64).eval(), 64)
    healthy = {str(i): [np.random.default_rng(i).normal(90, 1, (60, 40))] for i in range(30)}
    preprocessing, facts = Preprocessing(intensity="relative"), {"step_mm": 3.2, "made_of": "untrained"}
    score = LatentScore(*parts, "likelihood")
    return Detector("untrained", score, preprocessing, calibration=calibrate(healthy), provenance=facts)


def stopwatch() -> tuple[dict[str, float], Callable[[str], AbstractContextManager[None]]]:
    """What stages took, and how to measure one: CPU seconds of this process and of those that it started."""
    seconds: dict[str, float] = {}

    def spent() -> float:
        others = [p.cpu_times() for p in psutil.Process().children(recursive=True)]
        return time.process_time() + sum(times.user + times.system for times in others)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = spent()
        yield
        seconds[stage] = spent() - began

    return seconds, timed


def pipeline(detector: Detector, folder: str) -> dict[str, float]:
    """CPU seconds of each stage, with three detectors of mini-MIAS."""
    assert isinstance(detector.score, LatentScore)
    reconstruction = replace(detector, name="reconstruction", score=ModelScore(detector.score.model, "reconstruction"))
    floor = replace(detector, name="floor", score=Floor("relative-brightness"))
    detectors = [replace(d, calibration=None) for d in (detector, reconstruction, floor)]
    dataset, settings = mias.Dataset(folder), Ingest(detector.preprocessing)
    seconds, timed = stopwatch()
    with TemporaryDirectory() as out:
        with timed("ingest"):
            ingest(Here(), dataset, f"{out}/corpus", settings, {"dataset": "mias"})
        with timed("calibrate"):
            detectors = calibrate_detectors(Here(), detectors, dataset, detector.provenance["step_mm"], f"{out}/scores")
        with timed("evaluate"):
            evaluate(Here(), detectors, dataset, Evaluation("mias", folder), f"{out}/report")
    return seconds


def heatmap(detector: Detector, file: str, spacing_mm: float) -> dict[str, float]:
    """CPU seconds of each stage of an image."""
    assert detector.calibration is not None
    seconds, timed = stopwatch()
    with timed("read"):
        data = Path(file).read_bytes()
        if raster.is_raster(data):
            source = Source(raster.grey(raster.decode(data, file), file), spacing_mm, "MLO")
        else:
            facts, pixels = dicom.parsed(data, file, "refuse", False)
            source = Source(pixels, facts["spacing_mm"] or spacing_mm, facts["view"])
    with timed("prepare"):
        prepared = detector.preprocessing.prepare(source)
    with timed("score"):
        heatmap = detector.heatmap(prepared, detector.step())
    with timed("judge"):
        judged = judge(prepared, heatmap, detector.calibration)
    with timed("npz"):
        judged.npz()
    for stage, written in (("overlay", Written(True, False)), ("counterfactual", Written(False, True))):
        with timed(stage):
            arrays_and_picture("image", prepared, judged, detector, written)
    return seconds


def measured(options: Options) -> dict[str, dict[str, float]]:
    """Image -> stage -> CPU seconds, the second time that it is done; the stages of a data set as "mini-MIAS"."""
    torch.set_num_threads(1)
    detector = bundle.load(options.detector) if options.detector else untrained()
    spacings = options.spacing_mm if len(options.spacing_mm) > 1 else options.spacing_mm * len(options.images)
    images = list(zip(options.images, spacings, strict=True))
    for file, spacing_mm in images:
        heatmap(detector, file, spacing_mm)
    seconds = {Path(file).name: heatmap(detector, file, spacing_mm) for file, spacing_mm in images}
    return seconds | ({"mini-MIAS": pipeline(detector, options.mias)} if options.mias else {})


def by_another(checkout: Path, options: Options) -> dict[str, dict[str, float]]:
    """What a process measures that has another rayad."""
    words = [sys.executable, __file__, "--measure", "--images", *options.images, "--mias", options.mias]
    words += ["--detector", options.detector, "--spacing-mm", *map(str, options.spacing_mm)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(options: Options) -> None:
    """Measure, print, keep."""
    if options.measure:
        print(json.dumps(measured(options)))
        return
    checkouts = {"here": HERE} | ({"before": Path(options.before).resolve()} if options.before else {})
    runs: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in checkouts}
    for _ in range(options.runs):
        for name, checkout in checkouts.items():
            runs[name].append(by_another(checkout, options))
    rows = []
    for image in runs["here"][0]:
        for name, own in runs.items():
            row = {stage: median(run[image][stage] for run in own) for stage in own[0][image]}
            if "npz" in row:
                row["numbers"] = sum(row[stage] for stage in NUMBERS)
                row["with overlay"] = row["numbers"] + row["overlay"]
                row["with counterfactual"] = row["with overlay"] + row["counterfactual"]
            rows.append({"image": image, "rayad": name} | {stage: round(value, 3) for stage, value in row.items()})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    facts = {"runs": options.runs, "machine": provenance.machine(), "versions": provenance.versions()}
    options.out.write_text(json.dumps({"rows": rows} | facts, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
