"""A trained model's latents of both breasts of healthy women to a detector that compares them."""

import io
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rayad import bounded, bounds, storage
from rayad.checkpoints import CheckpointFolder
from rayad.datasets.content import contents, file_name
from rayad.datasets.exam import Exam, Images, source_of
from rayad.datasets.sides import with_other_sides
from rayad.density.em import fit
from rayad.errors import DatasetError, OptionError, reason
from rayad.fingerprint import fingerprint
from rayad.fit import Member
from rayad.imaging.picture import Prepared, step_px
from rayad.patches.corpus import LEARNING_SPLITS
from rayad.patches.sample import generator
from rayad.pipeline.detectors import finished, minutes_since, model_of, require_shares
from rayad.pipeline.fit_density import Learner, density_config, states_of
from rayad.pipeline.requests import DensityRequest
from rayad.pipeline.score import Preparation, exams_of, tolerate, unscored
from rayad.pool import Pool
from rayad.progress import State
from rayad.scoring import bundle, dense
from rayad.scoring.detector import Detector
from rayad.scoring.scores import LatentScore, Part, paired_rows
from rayad.tensors import Latents
from rayad.terminal import say

EACH = 240
"""Places of an image that are learned from, at most."""
MARGINAL = ("spn", "mixture", "gaussian_mixture")
"""Densities that answer with variables left out."""
APART = ("replicas=1", "inputs=150")
"""Of a circuit whose first cut is between the two sides: with one replica any of the distributions of one side goes
with any of the other. Where both sides share a replica or a region, a place is taken to be far more like its
counterpart than it is: held-out likelihood falls by 10 to 29 nats (docs/benchmark.md, "The other breast").
"""


def pair_detector(
    pool: Pool,
    name: str,
    trained: Detector,
    dataset: Images,
    request: DensityRequest,
    step_mm: float,
    url: str,
    max_failures: int = 0,
) -> Detector:
    """A detector that scores a place given the other breast, of the model of a trained one.

    The density is fitted to the latents of places of healthy training patients, of their counterparts in the other
    breast, and the context that is asked for (rayad/scoring/other_side.py).

    Args:
        step_mm: distance of the places.
        url: folder of the detector; one that is there, made of the same, is not made again.
        max_failures: images that may fail to be read.

    Raises:
        OptionError: latents that are codes, or a density that cannot be fitted or answers no marginals.
        DatasetError: no healthy patient has both breasts, or more images failed.
    """
    model, config = model_of(trained), pair_config(request, model_of(trained))
    require_shares([trained], dataset)
    exams = {split: _paired_exams(dataset, split) for split in LEARNING_SPLITS}
    learned_from = {split: contents(dataset, of_split) for split, of_split in exams.items()}
    made_of = fingerprint(["pair", trained.origin("made_of"), asdict(request), config, learned_from, step_mm, EACH])
    existing = finished(url, made_of)
    if existing is not None:
        return existing
    began = time.perf_counter()
    rows_url = storage.join(url, f"pairs-{made_of}")
    work = (dataset, trained, request.context, step_px(trained.preprocessing, step_mm), rows_url, pool.device)
    files = {}
    for split, of_split in exams.items():
        outcomes = list(pool.map(PairedPlaces, of_split, f"places of both breasts, {split}", work, unscored))
        pairs = list(zip(of_split, outcomes, strict=True))
        failures = [{"exam_id": exam.exam_id, "reason": why} for exam, why in pairs if why]
        tolerate(failures, len(of_split), max_failures, f"{split} images")
        files[split] = tuple(_file(rows_url, exam) for exam, why in pairs if not why)
    density, history = _fitted(pool, files, config, request, rows_url, 2 * model.module.latents + len(request.context))
    storage.remove(rows_url)
    for warning in history.get("warnings", ()):
        say(f"rayad: {name}: {warning}", sys.stderr)
    faults = [*trained.provenance.get("faults", []), *history.pop("faults")]
    training = {
        "faults": faults,
        "density_training": history,
        "settings": repr(request.em),
        "seed": request.em.seed,
        "made_of": made_of,
    }
    origin = trained.provenance | training
    origin["train_minutes"] = origin.get("train_minutes", 0.0) + minutes_since(began)
    score = LatentScore(model, density, "other-side", request.context)
    paired = replace(trained, name=name, score=score, provenance=origin, adjustment=None, calibration=None)
    bundle.save(paired, url)
    return paired


def pair_config(request: DensityRequest, model: Part) -> Any:
    """The configuration of a density of both breasts; OptionError where there cannot be one."""
    if states_of(model.module):
        raise OptionError(f"the latents of {model.name} are codes, of which there is no mean around a place")
    if request.smooth or request.classes:
        raise OptionError("smooth and classes are for densities of patches; one of both breasts has neither")
    if request.density == "spn" and not request.settings:
        request = replace(request, settings=(f"first={model.module.latents}", *APART))
    config = density_config(request, model)
    if getattr(config, "axes", "") == "principal" or request.density not in MARGINAL:
        raise OptionError(
            f"{request.density} with these settings cannot leave variables out, as a missing breast is: take spn over "
            "variables, mixture or gaussian_mixture"
        )
    return config


def _paired_exams(dataset: Images, split: str) -> list[Exam]:
    exams = with_other_sides(exams_of(dataset, split))
    paired = [exam for exam in exams if exam.other]
    if not paired:
        raise DatasetError(
            f"none of {len(exams)} images of the {split} split has one of the patient's other breast in the same view; "
            "patient, view and laterality of images tell it"
        )
    return paired


def _file(url: str, exam: Exam) -> str:
    return storage.join(url, f"{file_name(exam.exam_id)}.npy")


def _fitted(
    pool: Pool, files: dict[str, tuple[str, ...]], config: Any, request: DensityRequest, url: str, variables: int
) -> tuple[Part, dict[str, Any]]:
    """The density, and what is worth knowing of its training."""
    module: nn.Module = config.build(variables)
    result = storage.join(url, "learned")
    task = {"files": files, "config": config, "request": request, "result": result, "variables": variables}
    faults = []
    if isinstance(module, Learner):
        list(pool.map(_learn_alone, [task], request.density))
    else:
        faults = pool.learn(_loop, task, storage.join(url, "ray"), request.em.epochs, request.density)
    state = CheckpointFolder(result).load()
    assert state is not None  # rank 0 or the only one saved it
    module.load_state_dict(state.tensors)
    history = state.scalars | {"faults": [asdict(fault) for fault in faults]}
    return Part(request.density, config, module.eval(), variables), history


def _learn_alone(task: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    train, validation = (_rows(task["files"][split]) for split in LEARNING_SPLITS)
    density = task["config"].build(task["variables"])
    history = density.learn(train, validation, task["request"].em.seed)
    CheckpointFolder(task["result"]).save(State(density.state_dict(), history))


def _loop(task: dict[str, Any], member: Member) -> None:
    """One worker's part of learning: its share of the images."""
    torch.set_num_threads(1)
    sync = member.sync
    train, validation = (
        _rows([str(file) for file in np.array_split(task["files"][split], sync.world)[sync.rank]]).to(member.device)
        for split in LEARNING_SPLITS
    )
    density = task["config"].build(task["variables"]).to(member.device)
    history = fit(density, train, validation, task["request"].em, sync=sync, report=member.report)
    if sync.rank == 0:
        summary = {"best": history.best, "epochs": len(history.rows), "warnings": list(history.warnings)}
        CheckpointFolder(task["result"]).save(State(density.state_dict(), summary))


def _rows(files: Sequence[str]) -> Latents:
    return torch.from_numpy(np.concatenate([bounded.load_npy(storage.read_bytes(file), file) for file in files]))


@dataclass(frozen=True)
class PairedPlaces:
    """Writes what a density of both breasts learns from: some places of images, a file each."""

    dataset: Images
    detector: Detector
    context: tuple[str, ...]
    step: int
    """Of the grid, px of the working resolution."""
    url: str
    device: str = "cpu"

    @staticmethod
    def prepare(
        dataset: Images, detector: Detector, context: tuple[str, ...], step: int, url: str, device: str, exam: Exam
    ) -> Prepared:
        """The image and that of the other breast, as the call needs them."""
        return detector.preprocessing.prepare(source_of(dataset, exam))

    def __call__(self, exam: Exam, prepared: Preparation | None = None) -> str:
        """Why there are no places; empty: they are written."""
        target = _file(self.url, exam)
        if storage.exists(target):
            return ""
        try:
            image = (prepared and prepared()) or self.detector.preprocessing.prepare(source_of(self.dataset, exam))
            if image.other is None:
                return next(doubt.sentence for doubt in image.doubts if doubt.kind == "other")
            with bounds.within(bounds.current().score_seconds, "score_seconds"):
                rows = drawn_rows(self.detector.on(self.device), image, self.step, self.context, exam.exam_id)
        except Exception as error:  # noqa: BLE001, whatever it is, the other images are read
            return reason(error)
        buffer = io.BytesIO()
        np.save(buffer, rows.cpu().numpy(), allow_pickle=False)
        storage.write_bytes(target, buffer.getvalue())
        return ""


def drawn_rows(detector: Detector, image: Prepared, step: int, context: tuple[str, ...], exam_id: str) -> Latents:
    """Latents, those of the other breast and context of places drawn at random, the same for an image each time."""
    h, w = image.stored.shape
    tissue = image.tissue[np.ix_(*dense.places(h, w, step))]
    with torch.inference_mode():
        parts = paired_rows(model_of(detector).module, image, step, tissue, context)
    rows = torch.cat([part.cpu() for part in parts], 1)
    return rows[np.sort(generator(0, exam_id).permutation(len(rows))[:EACH])]
