"""Run a recipe: ingest, train, fit densities, combine, calibrate, evaluate, report."""

from dataclasses import replace
from typing import Any

from rayad import catalog, recipes, storage
from rayad.datasets.exam import Images
from rayad.datasets.splits import assign
from rayad.patches.corpus import Corpus
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.combine import combine
from rayad.pipeline.detectors import aggregated, asked, floor_detector, saved
from rayad.pipeline.evaluate import Evaluation, evaluate
from rayad.pipeline.fit_density import fit_detector
from rayad.pipeline.ingest import write_corpus
from rayad.pipeline.train import train_detector
from rayad.pool import Pool
from rayad.recipes import Line
from rayad.scoring import bundle
from rayad.scoring.detector import Detector
from rayad.terminal import warn_once


def run_recipe(pool: Pool, recipe: recipes.Recipe, source: str, url: str, seeds: int = 1, split: str = "test") -> str:
    """Run all stages that are not done; return the URL of the report's page, "" if there is nothing to report.

    There is nothing where the recipe names no kind of lesion and no image of the split has a finding.

    Args:
        source: folder or URL of the recipe's data set.
        url: where ``corpus``, ``models``, ``densities``, ``detectors``, ``scores`` and ``report`` go; what is learned
            with another seed than 0 goes below ``seed-1`` and so on.
        seeds: how often everything that learns is trained; the table is of seed 0, with the spread over the others.
        split: whose images are judged: test, or development for choices.
    """
    dataset = catalog.configure("datasets", recipe.dataset, {"source": source, **recipe.dataset_fields})
    runs = [_Run(pool, recipe, dataset, source, url, seed).detectors() for seed in range(seeds)]
    exams = dataset.exams()
    assigned = assign(exams)
    if not recipe.kinds and not any(exam.anomalous and assigned[exam.exam_id] == split for exam in exams):
        return ""
    options = Evaluation(
        recipe.dataset,
        source,
        split,
        step_mm=recipe.step_mm,
        kinds=recipe.kinds,
        recipe=recipe.name,
        why=recipe.why,
        dense=recipe.dense,
        compare=recipe.compare,
        literature=recipe.literature,
        groups=recipe.groups,
    )
    where = storage.join(url, "report" if split == "test" else f"report-{split}")
    return evaluate(pool, runs[0], dataset, options, where, storage.join(url, "scores"), others=runs[1:])


class _Run:
    """The detectors of a recipe with one seed."""

    def __init__(self, pool: Pool, recipe: recipes.Recipe, dataset: Images, source: str, url: str, seed: int) -> None:
        self.recipe, self.dataset, self.source, self.url = recipe, dataset, source, url
        self.pool, self.seed = pool, seed

    def detectors(self) -> list[Detector]:
        """All of them, calibrated and saved, in the order of the table."""
        by_name: dict[str, Detector] = {}
        for line in self.recipe.lines:
            by_name |= {d.name: d for d in self._of_line(line)}
        for name, combination in self.recipe.combined.items():
            by_name[name] = self._combined(name, combination, by_name)
        groups = self.recipe.groups
        headings = list(dict.fromkeys(groups[name] for name in [*self.recipe.order, *by_name]))
        place = {name: i for i, name in enumerate(dict.fromkeys([*self.recipe.order, *by_name]))}
        return [by_name[name] for name in sorted(by_name, key=lambda n: (headings.index(groups[n]), place[n]))]

    def _of_line(self, line: Line) -> list[Detector]:
        where = storage.join(self.url, "-".join(filter(None, ["corpus", line.name])))
        corpus = write_corpus(self.pool, self.recipe.dataset, self.source, self.dataset, line.ingest, where)
        detectors = [
            aggregated(floor_detector(name, score, corpus), aggregation)
            for name, (score, aggregation) in line.floors.items()
        ]
        for name, row in line.rows.items():
            base = self._trained(line, corpus, row.model)
            if row.density:
                base = self._fitted(line, corpus, row.model, row.density, base)
            detectors.append(aggregated(asked(base, name, row.score), row.aggregation))
        return self._calibrated(detectors)

    def _trained(self, line: Line, corpus: Corpus, label: str) -> Detector:
        model = line.models[label]
        plugin = model.name or label
        config = catalog.configure("models", plugin, model.fields)
        schedule = replace(line.schedule, seed=self.seed, epochs=model.epochs or line.schedule.epochs)
        where = self._at("models", line.name, label)
        return train_detector(self.pool, label, corpus, plugin, config, schedule, where)

    def _fitted(self, line: Line, corpus: Corpus, label: str, density: str, trained: Detector) -> Detector:
        density_settings = line.densities[density]
        where, latents = self._at("densities", line.name, label, density), self._at("latents", line.name, label)
        em = replace(line.em, seed=self.seed)
        return fit_detector(self.pool, density, corpus, trained, density_settings, em, where, latents)

    def _combined(self, name: str, of: recipes.Combined, found: dict[str, Detector]) -> Detector:
        members = [found[member] for member in of.members]
        scores = storage.join(self.url, "scores")
        made = combine(self.pool, name, of.rule, members, self.dataset, self.recipe.step_mm, scores)
        return self._calibrated([aggregated(made, of.aggregation)])[0]

    def _calibrated(self, detectors: list[Detector]) -> list[Detector]:
        """With their p-values; those that have them already are loaded."""
        ready = [saved(d, self._at("detectors", d.name)) for d in detectors]
        done = calibrate_detectors(
            self.pool, ready, self.dataset, self.recipe.step_mm, storage.join(self.url, "scores")
        )
        for before, after in zip(ready, done, strict=True):
            if before is not after:
                bundle.save(after, self._at("detectors", after.name))
        for one in done:
            if one.calibration and one.calibration.few:
                warn_once(f"detectors are {one.calibration.few}")
        return done

    def _at(self, kind: str, *names: Any) -> str:
        home = storage.join(self.url, f"seed-{self.seed}") if self.seed else self.url
        return storage.join(home, kind, "-".join(filter(None, names)))
