"""The detector bundle: a detector in JSON and safetensors.

``detector.json`` names the parts, their configurations, the hashes of the tensor files, and where it all comes from;
``model.safetensors``, ``density.safetensors`` and ``calibration.safetensors`` hold the numbers. docs/formats.md has
every field. No pickle.
"""

import hashlib
from dataclasses import asdict
from typing import Any

import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError

from rayad import catalog, storage
from rayad.errors import FormatError
from rayad.imaging.picture import described, from_description
from rayad.scoring.calibrate import Calibration
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector, Part

SCHEMA = 2


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
    for member in detector.members:
        save(member, _member(url, member.name))
    description = {
        "schema": SCHEMA,
        "name": detector.name,
        "score": detector.score,
        "preprocessing": described(detector.preprocessing),
        "aggregation": asdict(detector.aggregation),
        "model": detector.model and detector.model.description(),
        "density": detector.density and detector.density.description(),
        "context": detector.context,
        "members": [member.name for member in detector.members],
        "sha256": {kind: hashlib.sha256(data).hexdigest() for kind, data in files.items()},
        "provenance": detector.provenance,
    }
    storage.write_json(storage.join(url, "detector.json"), description)


def describe(url: str) -> dict[str, Any]:
    """What ``detector.json`` says, in the words of today's schema.

    Raises:
        FormatError: there is no bundle, or it is of a newer schema.
    """
    where = storage.join(url, "detector.json")
    if not storage.exists(where):
        raise FormatError(f"{url}: no detector here, detector.json is missing")
    description = storage.read_json(where)
    if description.get("schema", 0) > SCHEMA:
        raise FormatError(f"{where}: schema {description['schema']} is newer than {SCHEMA}, which this rayad reads")
    return _upgraded(description)


def load(url: str, anyway: bool = False) -> Detector:
    """Read a bundle.

    Args:
        anyway: also one whose parameters are not finite, which has no scores.

    Raises:
        FormatError: no bundle, a newer schema, tensors whose hash is not the one in ``detector.json``, or that are not
            finite.
    """
    said = describe(url)
    calibration = None
    if "calibration" in said["sha256"]:
        tensors = safetensors.numpy.load(_checked(url, "calibration", said["sha256"]))
        calibration = Calibration.from_tensors(tensors)
    found = Detector(
        name=said["name"],
        score=said["score"],
        preprocessing=from_description(said["preprocessing"]),
        model=_part(url, "model", said),
        density=_part(url, "density", said),
        aggregation=Aggregation(**said["aggregation"]),
        calibration=calibration,
        provenance=said["provenance"],
        context=tuple(said["context"]),
        members=tuple(load(_member(url, name), anyway) for name in said["members"]),
    )
    if not anyway and (wrong := not_finite(found)):
        raise FormatError(f"{url}: {wrong[0]} holds numbers that are not finite")
    return found


def _member(url: str, name: str) -> str:
    return storage.join(url, "members", name)


def _upgraded(said: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 called the loss of a variational autoencoder its reconstruction score, and had no members."""
    if said.get("schema", 0) != 1:
        return said
    loss = said.get("score") == "reconstruction" and (said.get("model") or {}).get("name") == "bvae"
    return said | {"context": [], "members": []} | ({"score": "elbo"} if loss else {})


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


def not_finite(detector: Detector) -> list[str]:
    """Names of the parameters and buffers of its model and density that hold nan or infinities."""
    parts = (("model", detector.model), ("density", detector.density))
    state = [(kind, *item) for kind, part in parts if part for item in part.module.state_dict().items()]
    return [f"{kind}: {name}" for kind, name, v in state if v.is_floating_point() and not torch.isfinite(v).all()]


def _checked(url: str, kind: str, hashes: dict[str, str]) -> bytes:
    where = storage.join(url, f"{kind}.safetensors")
    if not storage.exists(where):
        raise FormatError(f"{where}: missing, though detector.json names it")
    data = storage.read_bytes(where)
    if hashlib.sha256(data).hexdigest() != hashes[kind]:
        raise FormatError(f"{where}: altered or truncated, its hash is not the one in detector.json")
    return data
