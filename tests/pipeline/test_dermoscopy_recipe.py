"""The dermoscopy recipe from folders of colour images to the report, small."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayad import recipes, storage
from rayad.density.em import EM
from rayad.fit import Schedule
from rayad.imaging import dermoscopy
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Data, Run, RunRequest, run_recipe
from rayad.pool import Here
from rayad.scoring.detector import Detector

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Skin with a brown spot; malignant ones are larger, blue-black and ragged."""
    folder, random = tmp_path_factory.mktemp("skin"), np.random.default_rng(0)
    y, x = np.mgrid[:80, :80] - 40.0
    for name, count in (("benign", 70), ("malignant", 16)):
        (folder / name).mkdir()
        for number in range(count):
            ragged = 6 * np.sin(7 * np.arctan2(y, x)) if name == "malignant" else 0
            radius = random.uniform(24, 30) if name == "malignant" else random.uniform(8, 14)
            spot = (np.hypot(y, x) + ragged < radius)[..., None]
            colour = (40, 40, 70) if name == "malignant" else (150, 90, 60)
            image = np.where(spot, colour, (225, 180, 160)) + random.normal(0, 6, (80, 80, 3))
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / name / f"{name}-{number:03}.png")
    return folder


def test_malignant_images_stand_out_and_get_verdicts(photographs, tmp_path):
    def few(run: Run) -> list[Detector]:
        corpus = run.corpus(Ingest(dermoscopy.Preprocessing(), Sampling(1, 0.0, where="centre"), shard_patches=512))
        learned = Schedule(epochs=20, batch=8)
        cae = run.train(corpus, TrainRequest("cae", ("channels=3", "width=4", "latents=8"), learned))
        spn = run.fit(corpus, cae, DensityRequest(settings=("inputs=3", "replicas=3"), em=EM(epochs=3)))
        pca = run.train(corpus, TrainRequest("pca", ("channels=3", "components=8"), learned))
        return [run.ask(cae, "cae"), run.ask(spn, "cae-spn"), run.ask(pca, "pca")]

    recipe = replace(recipes.find("isic"), detectors=few, order=())
    run_recipe(Here(), RunRequest(recipe, Data("isic", str(photographs))), str(tmp_path))
    results = storage.read_json(f"{tmp_path}/report/results.json")
    exam_auc = {row["detector"]: row["exam_auc"]["value"] for row in results["rows"]}
    assert exam_auc["cae"] > 0.9
    assert exam_auc["pca"] > 0.9
    assert {row["detector"] for row in results["verdicts"]} >= {"cae", "cae-spn", "pca"}
    assert "malignant" in storage.read_bytes(f"{tmp_path}/report/index.html").decode()
    assert all(note.startswith("Doubtful: ") for note in results["notes"]), "an image is one place, and none is marked"
