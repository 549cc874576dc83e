"""What adjusting scores for the place brings on mini-MIAS, and what smoothing the adjusted map brings on top.

    python benchmarks/place.py --source mini-mias --out place
    python benchmarks/place.py --source mini-mias --out place --detector out/detectors/cae-spn

Rows are floors, and the detectors that are given; columns how they are adjusted. Judged are all diseased patients, from
none of whom anything is learned, and no setting is chosen by them: the smoothing is chosen by lesions that are
pasted into healthy validation patients. A figure is pixel AUC / mean image-wise AUC.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

import tyro

from rayad import catalog, storage
from rayad.datasets.exam import Images
from rayad.datasets.splits import EVERY
from rayad.evaluation import metrics
from rayad.evaluation.metrics import Scored
from rayad.evaluation.significance import wilcoxon
from rayad.imaging.mammogram import Preprocessing
from rayad.on_ray.pool import connected
from rayad.pipeline.adjust import adjust_detectors
from rayad.pipeline.score import exams_of, score
from rayad.pool import Pool
from rayad.private import keep_private
from rayad.scoring import bundle
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor

STEP_MM = 3.2
KINDS = ("mass", "calcification")
SMOOTHINGS = (0.0, 3.0, 6.0, 9.0)
FLOORS = {
    "brightness": (Floor("brightness"), Preprocessing(intensity="relative"), Aggregation()),
    "relative-maximum": (
        Floor("relative-brightness"),
        Preprocessing(intensity="relative"),
        Aggregation("maximum", 6.4),
    ),
    "fine-top-hat": (Floor("top-hat"), Preprocessing(spacing_mm=0.2, intensity="specks"), Aggregation()),
}
"""Name -> score, picture and aggregation, as in the recipe `mias`."""
RESULTS = Path(__file__).parent / "results" / "place.json"


@dataclass(frozen=True)
class Options:
    """What is judged, and where."""

    source: str
    """Folder or URL of mini-MIAS."""
    out: str = "place"
    """Where detectors and scores go."""
    detector: tuple[str, ...] = ()
    """URLs of detectors that learned from mini-MIAS, beside the floors."""


def main(options: Options) -> None:
    """Print a line for each row, column and kind of lesion, and keep all of them."""
    keep_private()
    url = storage.absolute(options.out)
    dataset = catalog.configure("datasets", "mias", {"source": storage.absolute(options.source)})
    pasted = catalog.configure("datasets", "pasted", {"source": storage.absolute(options.source)})
    detectors = [*_floors(), *(bundle.load(storage.absolute(detector)) for detector in options.detector)]
    kept = {}
    with connected() as pool:
        for detector in detectors:
            row = _row(pool, detector, dataset, pasted, url)
            kept[detector.name] = row
            print(detector.name, json.dumps(row, indent=1), flush=True)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def _floors() -> list[Detector]:
    return [
        Detector(name, floor, picture, aggregation, provenance={"made_of": repr((floor, picture))})
        for name, (floor, picture, aggregation) in FLOORS.items()
    ]


def _row(pool: Pool, detector: Detector, dataset: Images, pasted: Images, url: str) -> dict[str, dict[str, dict]]:
    """Column -> kind of lesion -> figures on pasted and on true lesions, with the test against the detector itself."""
    columns = [replace(detector, calibration=None), *_adjusted(pool, detector, dataset, url)]
    on_pasted, on_true = (_scored(pool, columns, images, url) for images in (pasted, dataset))
    return {
        column.name: {
            kind: {
                "pasted": _figures(on_pasted[column.name], kind),
                "true": _figures(on_true[column.name], kind),
                "against itself": asdict(_test(on_true[column.name], on_true[detector.name], kind)),
            }
            for kind in KINDS
        }
        for column in columns
    }


def _adjusted(pool: Pool, detector: Detector, dataset: Images, url: str) -> list[Detector]:
    named = [replace(detector, name=f"{detector.name}-place-{smooth_mm:g}") for smooth_mm in SMOOTHINGS]
    urls = [storage.join(url, "adjusted", column.name) for column in named]
    return adjust_detectors(
        pool, named, [Aggregation("gaussian", smooth_mm) for smooth_mm in SMOOTHINGS], dataset, STEP_MM, urls
    )


def _scored(pool: Pool, columns: Sequence[Detector], images: Images, url: str) -> dict[str, list[Scored]]:
    exams = [exam for exam in exams_of(images, EVERY) if exam.anomalous]
    scored, _ = score(pool, columns, images, exams, STEP_MM, storage.join(url, "scores"), columns[0].name)
    return {column.name: [image.of(column.name) for image in scored] for column in columns}


def _figures(images: Sequence[Scored], kind: str) -> dict[str, float | int]:
    places, each = metrics.pool(images, kind), metrics.image_wise_auc(images, kind)
    pixel_auc = metrics.auroc(places.scores, places.anomalous)
    return {"images": len(each), "pixel_auc": round(pixel_auc, 4), "image_wise_auc": round(mean(each.values()), 4)}


def _test(images: Sequence[Scored], others: Sequence[Scored], kind: str):
    """Paired over images."""
    patients = {image.exam_id: image.patient_id for image in images}
    sides = []
    for side in (images, others):
        values: dict[str, list[float]] = {}
        for exam_id, value in metrics.image_wise_auc(side, kind).items():
            values.setdefault(patients[exam_id], []).append(value)
        sides.append(values)
    return wilcoxon(*sides)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
