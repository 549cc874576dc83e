"""Detectors: how their scores are read and combined, what they are worth, and what they say of images."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from rayad import storage
from rayad.cli.shared import MayFail, OfDataset, OnGpu, ReadsImages, Several, WithStep
from rayad.datasets.exam import read_by
from rayad.errors import RayadError
from rayad.options import MillimetresOrNone, Names, SpacingOrNone
from rayad.outputs import claimed, require_apart
from rayad.pipeline.requests import TeachRequest, part
from rayad.scoring import bundle
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import STEP_MM, Detector
from rayad.scoring.rule import parse
from rayad.terminal import say


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """Make a detector that uses another score of a trained detector, or another aggregation."""

    detector: str
    """URL of the trained detector."""
    out: str
    """Folder or URL of the new detector; it is not calibrated."""
    name: str
    """Name of the new detector."""
    score: str = ""
    """Score of the model, or squared, maximum or ssim of its reconstruction; empty: the trained detector's score."""
    aggregation: Aggregation = Aggregation()

    def __call__(self) -> None:
        from rayad.pipeline.detectors import aggregated, asked

        detector, out = storage.absolute(self.detector), storage.absolute(self.out)
        trained = bundle.load(detector)
        rescored = asked(trained, self.name, self.score or trained.score.name)
        with claimed(out, "a detector", [detector]):
            bundle.save(aggregated(rescored, self.aggregation), out)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True, kw_only=True)
class Combine(OfDataset, OnGpu, WithStep, MayFail):
    """Combine several detectors into one, by how rare each score is in the data set's healthy validation patients."""

    detector: Several
    """URLs of the detectors; they may see different pictures of an image."""
    out: str
    """Folder or URL of the new detector; it is not calibrated."""
    name: str
    """Name of the new detector."""
    scores: str
    """Folder for their scores."""
    rule: str = "fisher"
    """Rule by which scores become one: fisher, minimum, mean, spread or difference (`rayad list scores`)."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.combine import combine

        urls = [storage.absolute(url) for url in self.detector]
        out, scores = storage.absolute(self.out), storage.absolute(self.scores)
        members = [bundle.load(url) for url in urls]
        dataset = self.opened()
        inputs = [*urls, *read_by(dataset)]
        require_apart(scores, inputs)
        with claimed(out, "a detector", inputs), connected(self.address, self.scorers) as pool:
            made = combine(pool, self.name, self.rule, members, dataset, self.step_mm, scores, self.max_failures)
            bundle.save(made, out)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True, kw_only=True)
class Adjust(OfDataset, OnGpu, WithStep, MayFail):
    """Make a detector whose scores are adjusted for the place, by what healthy training images score there."""

    detector: str
    """URL of a detector, calibrated or not."""
    out: str
    """Folder or URL of the new detector; it is not calibrated."""
    name: str
    """Name of the new detector."""
    smoothing: Aggregation = Aggregation()

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.adjust import adjust_detectors

        url, out = storage.absolute(self.detector), storage.absolute(self.out)
        detector = replace(bundle.load(url), name=self.name)
        dataset = self.opened()
        work = [detector], [self.smoothing], dataset, self.step_mm, [out], self.max_failures
        with claimed(out, "a detector", [url, *read_by(dataset)]), connected(self.address, self.scorers) as pool:
            adjust_detectors(pool, *work)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True, kw_only=True)
class Teach(TeachRequest, OfDataset, OnGpu, WithStep, MayFail):
    """Teach a detector by a few labels what the scores of others say of lesions; the others do not learn anew."""

    detector: Several
    """URLs of the detectors whose scores are used; what is learned corrects those of the first."""
    out: str
    """Folder or URL of the new detector; it is not calibrated."""
    name: str
    """Name of the new detector."""
    scores: str
    """Folder for the detectors' scores."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.labelled import labelled_images
        from rayad.pipeline.teach import teach

        urls = [storage.absolute(url) for url in self.detector]
        out, scores = storage.absolute(self.out), storage.absolute(self.scores)
        request = replace(part(TeachRequest, self), readings=storage.absolute(self.readings) if self.readings else "")
        members = [bundle.load(url) for url in urls]
        dataset = self.opened()
        labelled_images(request, dataset)  # what is wrong with the labels is said before Ray starts
        inputs = [*urls, *read_by(dataset), *filter(None, [request.readings])]
        require_apart(scores, inputs)
        with claimed(out, "a detector", inputs), connected(self.address, self.scorers) as pool:
            made = teach(pool, self.name, request, members, dataset, self.step_mm, scores, self.max_failures)
            bundle.save(made, out)
        say(f"{made.name}: {made.provenance['settings']}")
        say(f"The detector is at {self.out}; calibrate it, on healthy patients that serve nothing else")


@dataclass(frozen=True, kw_only=True)
class Calibrate(OfDataset, OnGpu, WithStep, MayFail):
    """Give a detector its p-values, from healthy patients that serve nothing else."""

    detector: Several
    """URLs of detectors of one corpus; their bundles get the calibration."""
    scores: str
    """Folder for the scores of the calibration patients."""
    rule: str = ""
    """Rule by which an image is abnormal: sd=3 (mean and standard deviations of healthy images), quantile=0.95,
    fpr=0.05 (wanted share of false alarms) or score=12.5; empty: the one that the detector has."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.calibrate import calibrate_detectors
        from rayad.pipeline.detectors import require_names

        urls = [storage.absolute(url) for url in self.detector]
        rule = str(parse(self.rule)) if self.rule else ""
        dataset = self.opened()
        scores = storage.absolute(self.scores)
        require_apart(scores, [*urls, *read_by(dataset)])
        with ExitStack() as stack:
            for url in urls:
                stack.enter_context(claimed(url, "a detector", read_by(dataset)))
            detectors = [bundle.load(url) for url in urls]
            require_names(detectors)
            with connected(self.address, self.scorers) as pool:
                calibrated = calibrate_detectors(pool, detectors, dataset, self.step_mm, scores, self.max_failures)
            calibrated = [detector.ruled(rule) if rule else detector for detector in calibrated]
            for detector, url in zip(calibrated, urls, strict=True):
                bundle.save(detector, url)
        for detector in calibrated:
            patients = detector.calibration.patients if detector.calibration else 0
            say(f"{detector.name}: calibrated on {patients} healthy patients, smallest p {1 / (patients + 1):.3g}")
        _warn_of_few(calibrated)


@dataclass(frozen=True, kw_only=True)
class Evaluate(OfDataset, OnGpu, MayFail):
    """Evaluate detectors on a labelled data set, with results.json and index.html as the report."""

    detector: Several
    """URLs of the detectors to judge."""
    out: str
    """Folder or URL of the report."""
    split: Literal["test", "development", "label-free"] = "test"
    """Split whose images are judged: test; development, for choices; or label-free, both, where nothing is chosen on
    diseased patients."""
    dense: Names = ()
    """Classes of tissue that count as dense, such as D; then figures are given for dense and other images apart."""
    step_mm: MillimetresOrNone = 0.0
    """Distance of the scored places, mm; 0: that of the detectors' calibration, which p-values are for."""
    streamed: bool = False
    """Evaluate a test set of any size: workers add up counts, and only figures over places result, in streamed.json."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.detectors import require_names
        from rayad.pipeline.evaluate import Evaluation, evaluate
        from rayad.pipeline.streamed import streamed

        dataset = self.opened()
        urls, out = [storage.absolute(url) for url in self.detector], storage.absolute(self.out)
        detectors = [bundle.load(url) for url in urls]
        step_mm = self.step_mm or detectors[0].provenance.get("step_mm", STEP_MM)
        bundles = {detector.name: url for detector, url in zip(detectors, urls, strict=True)}
        options = Evaluation(
            *self.named(dataset), self.split, step_mm, self.max_failures, dense=self.dense, bundles=bundles
        )
        require_names(detectors)
        _warn_of_few(detectors)
        with (
            claimed(out, "a report", [*urls, *read_by(dataset)]),
            connected(self.address, self.scorers) as pool,
        ):
            if self.streamed:
                _print_streamed(streamed(pool, detectors, dataset, options, out))
                return
            report = evaluate(pool, detectors, dataset, options, out)
        say(f"The report is at {report}")


@dataclass(frozen=True)
class Report:
    """Rebuild the page of a report from its results.json alone."""

    results: str
    """Folder or URL that holds results.json."""

    def __call__(self) -> None:
        from rayad.evaluation import report

        say(f"The report is at {report.rebuild(storage.absolute(self.results))}")


@dataclass(frozen=True, kw_only=True)
class Heatmaps(ReadsImages, OnGpu):
    """Make heatmaps of images: NAME.npz with scores and p-values, NAME.png with the overlay."""

    detector: str
    """URL of a detector."""
    images: Several
    """Images, folders of images, or tables (CSV, parquet) with columns url, spacing_mm and view."""
    out: str
    """Folder for the heatmaps."""
    spacing_mm: SpacingOrNone = 0.0
    """Pixel spacing, mm, of images that do not state it, such as PNG, PGM, TIFF and JPEG: 0.2 for mini-MIAS."""
    rule: str = ""
    """Rule by which an image is abnormal: sd=3, quantile=0.95, fpr=0.05 or score=12.5; empty: the detector's."""
    view: str = ""
    """View of images that do not state it: MLO, CC or empty; in an MLO view the pectoral muscle is left out."""
    step_mm: MillimetresOrNone = 0.0
    """Distance of the scored places, mm; 0: that of the detector's calibration, which p-values are for."""
    picture: bool = True
    """Write the overlay, NAME.png, too."""
    counterfactual: bool = False
    """Also write what the image would look like if it were healthy, which takes most of the time."""

    def __call__(self) -> None:
        from rayad.cli.few import ForMany
        from rayad.heatmaps.answers import Failure
        from rayad.heatmaps.drawing import Written
        from rayad.heatmaps.images import HeatmapRequest
        from rayad.pipeline.heatmap import write_heatmaps

        request = HeatmapRequest(self.spacing_mm, self.view, self.step_mm, self.force)
        written = Written(self.picture, self.counterfactual)
        images, out = [storage.absolute(url) for url in self.images], storage.absolute(self.out)
        detector = bundle.load(storage.absolute(self.detector))
        detector = detector.ruled(self.rule) if self.rule else detector
        _warn_of_few([detector])
        number = failures = 0
        with claimed(out, "heatmaps", [storage.absolute(self.detector), *images]):
            for row in write_heatmaps(ForMany(self.address, self.scorers), detector, images, request, out, written):
                say(row.model_dump_json())
                number, failures = number + 1, failures + isinstance(row, Failure)
        if failures:
            raise RayadError(f"{failures} of {number} images failed; the others' heatmaps are in {self.out}")


@dataclass(frozen=True)
class Check:
    """Check that detector bundles are complete and their numbers possible."""

    detector: Several
    """URLs of the detectors to check."""

    def __call__(self) -> None:
        from rayad.scoring.check import faults

        faulty = 0
        for url in self.detector:
            bundle_faults = faults(storage.absolute(url))
            for fault in bundle_faults:
                say(f"{url}: {fault}", sys.stderr)
            faulty += bool(bundle_faults)
            if not bundle_faults:
                say(f"{url}: {bundle.load(storage.absolute(url)).summary()}")
        if faulty:
            raise RayadError(f"{faulty} of {len(self.detector)} detectors are not what docs/formats.md says")


def _print_streamed(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each detector and kind of lesion."""
    say(f"{'detector':24}{'lesion':16}{'images':>8}{'AUROC':>8}{'AP':>8}{'Dice':>8}")
    for row in rows:
        values = [row[name]["value"] for name in ("pixel_auc", "pixel_ap", "best_dice")]
        cells = "".join(f"{value:8.3f}" if value is not None else f"{'-':>8}" for value in values)
        say(f"{row['detector']:24}{row['lesion']:16}{row['images']:8}{cells}")


def _warn_of_few(detectors: Sequence[Detector]) -> None:
    """Say of which detectors p-values say little."""
    for detector in detectors:
        if detector.calibration and detector.calibration.few:
            say(f"rayad: detector {detector.name} is {detector.calibration.few}", sys.stderr)
