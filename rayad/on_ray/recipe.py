"""Run a recipe: ingest, train, fit densities, calibrate, evaluate, report."""

from typing import Any

from rayad import catalog, recipes, storage
from rayad.datasets.exam import Images
from rayad.on_ray import stages
from rayad.on_ray.evaluate import Evaluation, evaluate
from rayad.on_ray.resources import Workers
from rayad.patches.corpus import Corpus
from rayad.recipes import Line
from rayad.scoring import detector as bundle
from rayad.scoring.detector import Detector


def run_recipe(recipe: recipes.Recipe, source: str, url: str, workers: Workers) -> str:
    """Run all stages that are not done; return the URL of the report's page.

    Args:
        source: folder or URL of the recipe's data set.
        url: where ``corpus``, ``detectors``, ``scores`` and ``report`` go.
    """
    dataset = catalog.configure("datasets", recipe.dataset, {"source": source, **recipe.dataset_fields})
    detectors = [d for line in recipe.lines for d in _detectors(recipe, line, dataset, source, url, workers)]
    options = Evaluation(
        recipe.dataset, source, step_mm=recipe.step_mm, kinds=recipe.kinds, recipe=recipe.name, why=recipe.why
    )
    return evaluate(detectors, dataset, options, storage.join(url, "report"), storage.join(url, "scores"))


def _detectors(
    recipe: recipes.Recipe, line: Line, dataset: Images, source: str, url: str, workers: Workers
) -> list[Detector]:
    """The line's detectors, calibrated and saved."""
    where = storage.join(url, "-".join(filter(None, ["corpus", line.name])))
    corpus = stages.write_corpus(recipe.dataset, source, dataset, line.ingest, where)
    detectors = [
        stages.aggregated(stages.floor_detector(name, score, corpus, _address(url, name)), aggregation)
        for name, (score, aggregation) in line.floors.items()
    ]
    for model, fields in line.models.items():
        detectors += _learned(line, model, catalog.configure("models", model, fields), corpus, url, workers)
    calibrated = stages.calibrate_detectors(detectors, dataset, recipe.step_mm, storage.join(url, "scores"))
    for before, after in zip(detectors, calibrated, strict=True):
        if before is not after:
            bundle.save(after, _address(url, after.name))
    return calibrated


def _learned(line: Line, model: str, config: Any, corpus: Corpus, url: str, workers: Workers) -> list[Detector]:
    """The detectors of one image model: by reconstruction, and by the likelihood of its latents."""
    spn = catalog.configure("density", "spn", line.density)
    name = "-".join(filter(None, [line.name, model]))
    trained = stages.train_detector(name, corpus, model, config, line.schedule, workers, _address(url, name))
    name = f"{name}-spn"
    fitted = stages.fit_detector(name, corpus, trained, "spn", spn, line.em, workers, _address(url, name))
    return [trained, stages.aggregated(fitted, line.aggregation)]


def _address(url: str, detector: str) -> str:
    return storage.join(url, "detectors", detector)
