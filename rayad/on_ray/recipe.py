"""Run a recipe: ingest, train, fit densities, calibrate, evaluate, report."""

from rayad import catalog, recipes, storage
from rayad.on_ray import stages
from rayad.on_ray.evaluate import Evaluation, evaluate
from rayad.on_ray.resources import Workers
from rayad.scoring import detector as bundle
from rayad.scoring.detector import Detector


def run_recipe(recipe: recipes.Recipe, source: str, url: str, workers: Workers) -> str:
    """Run all stages that are not done; return the URL of the report's page.

    Args:
        source: folder or URL of the recipe's data set.
        url: where ``corpus``, ``detectors`` and ``report`` go.
    """
    dataset = catalog.configure("datasets", recipe.dataset, {"source": source, **recipe.dataset_fields})
    corpus = stages.write_corpus(recipe.dataset, source, dataset, recipe.ingest, storage.join(url, "corpus"))
    detectors = [stages.floor_detector(n, n, corpus) for n in recipes.FLOORS]
    for model, fields in recipe.models.items():
        detectors += _learned(recipe, model, catalog.configure("models", model, fields), corpus, url, workers)
    scores = storage.join(url, "scores")
    detectors = stages.calibrate_detectors(detectors, dataset, recipe.step_px, scores)
    for one in detectors:
        bundle.save(one, _address(url, one.name))
    options = Evaluation(
        recipe.dataset, source, step_px=recipe.step_px, kinds=recipe.kinds, recipe=recipe.name, why=recipe.why
    )
    return evaluate(detectors, dataset, options, storage.join(url, "report"), scores)


def _learned(
    recipe: recipes.Recipe, model: str, config: object, corpus: stages.Corpus, url: str, workers: Workers
) -> list[Detector]:
    """The detectors of one image model: by reconstruction, and by the likelihood of its latents."""
    spn = catalog.configure("density", "spn", recipe.density)
    trained = stages.train_detector(model, corpus, model, config, recipe.schedule, workers, _address(url, model))
    name = f"{model}-spn"
    fitted = stages.fit_detector(name, corpus, trained, "spn", spn, recipe.em, workers, _address(url, name))
    return [trained, stages.aggregated(fitted, recipe.aggregation)]


def _address(url: str, detector: str) -> str:
    return storage.join(url, "detectors", detector)
