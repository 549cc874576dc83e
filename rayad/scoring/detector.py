"""The detector bundle: everything that turns an image into a heatmap, in JSON and safetensors.

``detector.json`` names the parts, their configurations, the hashes of the tensor files, and where it all
comes from; ``model.safetensors``, ``density.safetensors`` and ``calibration.safetensors`` hold the
numbers. docs/formats.md has every field. No pickle.
"""

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError

from rayad import catalog, storage
from rayad.arrays import Grid, GridMask
from rayad.errors import FormatError, ImageError, OptionError
from rayad.imaging.mammogram import Prepared, Preprocessing
from rayad.scoring import dense, floors
from rayad.scoring.calibrate import Calibration
from rayad.scoring.combine import Aggregation, aggregate

SCHEMA = 1


@dataclass(frozen=True)
class Part:
    """A trained plug-in: its file name, its configuration and its parameters."""

    name: str
    config: Any
    module: Any
    """An nn.Module that keeps the promises of its kind."""
    variables: int = 0
    """Of a density: the number of variables it was built for."""

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "config": asdict(self.config), "variables": self.variables}


@dataclass(frozen=True)
class Heatmap:
    """Scores of one image at the places of a grid."""

    scores: Grid
    """nan outside the tissue."""
    rows: np.ndarray
    """Rows of the places, in px of the working resolution."""
    columns: np.ndarray
    tissue: GridMask


@dataclass(frozen=True)
class Detector:
    """One way to score an image; a frozen value, so scoring an image depends on nothing else."""

    name: str
    score: str
    """"reconstruction" (model), "likelihood" (model and density), or the name of a floor."""
    preprocessing: Preprocessing
    model: Part | None = None
    density: Part | None = None
    aggregation: Aggregation = Aggregation()
    calibration: Calibration | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needs = {"reconstruction": [self.model], "likelihood": [self.model, self.density]}.get(self.score, [])
        if self.score not in KINDS:
            raise OptionError(f"no score {self.score!r}; rayad has {', '.join(KINDS)}")
        if None in needs:
            raise OptionError(f"detector {self.name!r}: the {self.score} score needs a trained model and density")

    def summary(self) -> str:
        """One line on what it is."""
        parts = [f"{p.name} of {sum(t.numel() for t in p.module.state_dict().values()):,} numbers" for p in self._parts]
        patients = self.calibration.patients if self.calibration else 0
        calibrated = f"calibrated on {patients} healthy patients" if patients else "not calibrated, so without p-values"
        return ", ".join([f"{self.name} scores by {self.score}", *parts, calibrated])

    def heatmap(self, prepared: Prepared, step: int) -> Heatmap:
        """Score the tissue of a prepared image on a grid.

        Args:
            step: distance of the places, in px of the working resolution.

        Raises:
            ImageError: the image is smaller than a patch, or no place lies in the tissue.
        """
        rows, columns = _grid(prepared, step)
        tissue = prepared.tissue[np.ix_(rows, columns)]
        if not tissue.any():
            raise ImageError(f"none of the {tissue.size} places of the grid lies in the tissue")
        scores = np.full(tissue.shape, np.nan, np.float32)
        scores[tissue] = self._places(prepared, step, tissue)
        scores = aggregate(scores, tissue, self.aggregation, step * prepared.spacing_mm)
        return Heatmap(scores, rows, columns, tissue)

    @property
    def _parts(self) -> list[Part]:
        return [part for part in (self.model, self.density) if part]

    def _places(self, prepared: Prepared, step: int, tissue: GridMask) -> np.ndarray:
        """Scores of the tissue's places, row by row."""
        if self.score in floors.MAPS:
            rows, columns = _grid(prepared, step)
            values = floors.MAPS[self.score](prepared.stored, prepared.tissue, prepared.spacing_mm)
            return values[np.ix_(rows, columns)][tissue]
        assert self.model is not None  # __post_init__ saw to it
        with torch.inference_mode():
            if self.score == "reconstruction":
                return dense.reconstruction(self.model.module, prepared.pixels, step, tissue).numpy()
            assert self.density is not None
            log_prob = self.density.module.log_prob
            return dense.likelihood(self.model.module, log_prob, prepared.pixels, step, tissue).numpy()


KINDS = ("reconstruction", "likelihood", *floors.MAPS)


def save(detector: Detector, url: str) -> None:
    """Write the bundle; ``detector.json`` last, so a bundle that has one is whole."""
    files = {}
    for kind in ("model", "density"):
        part: Part | None = getattr(detector, kind)
        if part is not None:
            state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in part.module.state_dict().items()}
            files[kind] = safetensors.torch.save(state)
    if detector.calibration is not None:
        files["calibration"] = safetensors.numpy.save(detector.calibration.to_tensors())
    for kind, data in files.items():
        storage.write_bytes(storage.join(url, f"{kind}.safetensors"), data)
    description = {
        "schema": SCHEMA,
        "name": detector.name,
        "score": detector.score,
        "preprocessing": asdict(detector.preprocessing),
        "aggregation": asdict(detector.aggregation),
        "model": detector.model and detector.model.description(),
        "density": detector.density and detector.density.description(),
        "sha256": {kind: hashlib.sha256(data).hexdigest() for kind, data in files.items()},
        "provenance": detector.provenance,
    }
    storage.write_json(storage.join(url, "detector.json"), description)


def describe(url: str) -> dict[str, Any]:
    """What ``detector.json`` says.

    Raises:
        FormatError: there is no bundle, or it is of a newer schema.
    """
    where = storage.join(url, "detector.json")
    if not storage.exists(where):
        raise FormatError(f"{url}: no detector here, detector.json is missing")
    description = storage.read_json(where)
    if description.get("schema", 0) > SCHEMA:
        raise FormatError(f"{where}: schema {description['schema']} is newer than {SCHEMA}, which this rayad reads")
    return description


def load(url: str) -> Detector:
    """Read a bundle.

    Raises:
        FormatError: no bundle, a newer schema, or tensors whose hash is not the one in ``detector.json``.
    """
    said = describe(url)
    calibration = None
    if "calibration" in said["sha256"]:
        tensors = safetensors.numpy.load(_checked(url, "calibration", said["sha256"]))
        calibration = Calibration.from_tensors(tensors)
    return Detector(
        name=said["name"],
        score=said["score"],
        preprocessing=Preprocessing(**said["preprocessing"]),
        model=_part(url, "model", said),
        density=_part(url, "density", said),
        aggregation=Aggregation(**said["aggregation"]),
        calibration=calibration,
        provenance=said["provenance"],
    )


def calibrated(detector: Detector, calibration: Calibration, **provenance: Any) -> Detector:
    """The detector with this calibration."""
    return replace(detector, calibration=calibration, provenance={**detector.provenance, **provenance})


def _grid(prepared: Prepared, step: int) -> tuple[np.ndarray, np.ndarray]:
    h, w = prepared.pixels.shape
    return dense.places(h, w, step)


def _part(url: str, kind: str, said: dict[str, Any]) -> Part | None:
    if said[kind] is None:
        return None
    folder = {"model": "models", "density": "density"}[kind]
    name, variables = said[kind]["name"], said[kind]["variables"]
    said_of = said[kind]["config"].items()
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in said_of}  # JSON has no tuples
    config = catalog.find(folder, name).Config(**settings)
    module = config.build(variables) if kind == "density" else config.build()
    data = _checked(url, kind, said["sha256"])
    try:
        module.load_state_dict(safetensors.torch.load(data))
    except (SafetensorError, RuntimeError) as error:
        said_why = " ".join(str(error).split())
        raise FormatError(f"{url}: {kind}.safetensors does not fit {name} of detector.json: {said_why}") from None
    return Part(name, config, module.eval(), variables)


def _checked(url: str, kind: str, hashes: dict[str, str]) -> bytes:
    where = storage.join(url, f"{kind}.safetensors")
    if not storage.exists(where):
        raise FormatError(f"{where}: missing, though detector.json names it")
    data = storage.read_bytes(where)
    if hashlib.sha256(data).hexdigest() != hashes[kind]:
        raise FormatError(f"{where}: altered or truncated, its hash is not the one in detector.json")
    return data
