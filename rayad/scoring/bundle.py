"""The detector bundle: a detector in JSON and safetensors.

``detector.json`` names the parts, their configurations, the hashes of the tensor files, and where it all comes from;
``model-HASH.safetensors``, ``density-HASH.safetensors``, ``adjustment-HASH.safetensors``,
``calibration-HASH.safetensors`` and ``taught-HASH.safetensors`` hold the numbers. docs/formats.md has every field, and
what is refused. No pickle.

A bundle may be a stranger's. So every field is checked against what it becomes, and a model or density is first built
without memory, on torch's device "meta": only one whose tensors are those of the file takes any.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rayad import catalog, storage
from rayad.errors import FormatError, OptionError, RayadError
from rayad.imaging.context import CONTEXT
from rayad.imaging.picture import described
from rayad.models._blocks import PATCH_PX
from rayad.scoring import files, taught
from rayad.scoring.adjustment import Adjustment
from rayad.scoring.calibrate import Calibration
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector, score_named
from rayad.scoring.files import BundleFolder
from rayad.scoring.scores import LatentScore, Part
from rayad.scoring.taught import Teaching
from rayad.terminal import shortened

SCHEMA = 5
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "name": str,
    "score": str,
    "preprocessing": dict,
    "patch_px": int,
    "aggregation": dict,
    "adjustment": (dict, type(None)),
    "model": (dict, type(None)),
    "density": (dict, type(None)),
    "context": list,
    "members": list,
    "sha256": dict,
    "provenance": dict,
}
"""Field of ``detector.json`` -> its type."""
ORIGIN: dict[str, type | tuple[type, ...]] = {
    "made_of": str,
    "train_minutes": (int, float),
    "faults": list,
    "step_mm": (int, float),
    "rule": str,
    "taught_by": list,
}
"""Field of ``provenance`` that rayad uses -> its type, where it is there."""
MOST_VARIABLES = 65_536
"""Of a density."""
SMALL = 65_536
"""Whole numbers in a configuration that need no numbers in the tensor file to be believed."""
IMPOSSIBLE = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    SafetensorError,
    RayadError,
)
"""What making something of fields and tensors raises that do not fit."""


def save(detector: Detector, url: str) -> None:
    """Write the bundle in the place of the one that is there, which stays whole until this one is.

    Names of files have the hashes of what is in them, so those of two bundles differ; `detector.json`, written last,
    makes the new ones the bundle. Then the files of the old one are removed, and nothing else.
    """
    contents = _files(detector)
    for name, data in contents.items():
        storage.write_bytes(storage.join(url, name), data)
    files.remove_others(url, contents)


def _files(detector: Detector) -> dict[str, bytes]:
    """Name -> content of a bundle's files, each detector.json after all that it names."""
    contents: dict[str, bytes] = {}
    tensors = dict(_tensors(detector))
    sha256 = {kind: hashlib.sha256(data).hexdigest() for kind, data in tensors.items()}
    description = {
        "schema": SCHEMA,
        "name": detector.name,
        "score": detector.score.name,
        "preprocessing": described(detector.preprocessing),
        "patch_px": detector.patch_px,
        "aggregation": asdict(detector.aggregation),
        "adjustment": detector.adjustment and asdict(detector.adjustment.smoothing),
        "model": detector.model and detector.model.description(),
        "density": detector.density and detector.density.description(),
        "context": detector.score.context if isinstance(detector.score, LatentScore) else (),
        "members": [member.name for member in detector.members],
        "sha256": sha256,
        "provenance": detector.provenance,
    }
    for member in detector.members:
        member_contents = _files(member)
        sha256[f"members/{member.name}"] = hashlib.sha256(member_contents["detector.json"]).hexdigest()
        folder = files.member_folder(member.name, description)
        contents |= {f"{folder}/{name}": data for name, data in member_contents.items()}
    contents |= {files.tensor_file(kind, description): data for kind, data in tensors.items()}
    return contents | {"detector.json": storage.json_bytes(description)}


def _tensors(detector: Detector) -> Iterator[tuple[str, bytes]]:
    """Kind and content of each tensor file."""
    for kind in ("model", "density"):
        part: Part | None = getattr(detector, kind)
        if part is not None:
            state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in part.module.state_dict().items()}
            yield kind, safetensors.torch.save(state)
    if detector.adjustment is not None:
        yield "adjustment", safetensors.numpy.save(detector.adjustment.to_tensors())
    if detector.calibration is not None:
        yield "calibration", safetensors.numpy.save(detector.calibration.to_tensors())
    if detector.teaching is not None:
        arrays = {name: np.ascontiguousarray(array) for name, array in detector.teaching.to_tensors().items()}
        yield "taught", safetensors.numpy.save(arrays)


def describe(url: str) -> dict[str, Any]:
    """What ``detector.json`` says, in the words of today's schema.

    Raises:
        FormatError: there is no bundle, or it is of a newer schema.
    """
    return _describe(files.opened(url))


def load(url: str, anyway: bool = False) -> Detector:
    """Read a bundle.

    Args:
        anyway: also one whose parameters are not finite, which has no scores.

    Raises:
        FormatError: no bundle, a newer schema, a field or tensor that is none of a detector, tensors whose hash is not
            the one in ``detector.json``, or that are not finite; a file or member that lies outside of the bundle.
    """
    before = sha256(url)
    try:
        return _load(files.opened(url), anyway)
    except RayadError:
        if sha256(url) == before:
            raise
        return load(url, anyway)  # it was replaced meanwhile, so files of the one before are gone


def sha256(url: str) -> str:
    """Hash of `detector.json`, which holds the hashes of all that belongs to the bundle.

    Raises:
        FormatError: there is no bundle, or its description is too large.
        StorageError: it cannot be read.
    """
    return hashlib.sha256(files.opened(url).content()).hexdigest()


def lacking(description: dict[str, Any]) -> Iterator[str]:
    """What is missing or of another type in ``detector.json``, a sentence each."""
    for name, kind in REQUIRED.items():
        if name not in description:
            yield f"detector.json has no {name!r}"
        elif not isinstance(description[name], kind) or isinstance(description[name], bool):
            yield f"{name!r} of detector.json is {_called(kind)}, not {shortened(description[name])}"


def not_finite(detector: Detector) -> list[str]:
    """Names of the parameters and buffers of its model and density that hold nan or infinities."""
    parts = (("model", detector.model), ("density", detector.density))
    state = [(kind, *item) for kind, part in parts if part for item in part.module.state_dict().items()]
    return [f"{kind}: {name}" for kind, name, v in state if v.is_floating_point() and not torch.isfinite(v).all()]


def _called(kind: type | tuple[type, ...]) -> str:
    """A type of JSON in words."""
    words = {int: "a whole number", float: "a number", str: "a text", dict: "an object", list: "a list"}
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(words.get(json_type, "null") for json_type in kinds)


def _describe(folder: BundleFolder) -> dict[str, Any]:
    description = folder.description()
    schema = description.get("schema", 0)
    if type(schema) is not int:
        raise FormatError(f"{folder.name}: 'schema' is a whole number, not {shortened(schema)}")
    if schema < 1 and "schema" in description:
        raise FormatError(f"{folder.name}: schemas are 1 to {SCHEMA}, this one is {shortened(schema)}")
    if schema > SCHEMA:
        raise FormatError(f"{folder.name}: schema {shortened(schema)} is newer than {SCHEMA}, which this rayad reads")
    return _upgraded(description)


def _upgraded(description: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 called the loss of a variational autoencoder its reconstruction score, and had no members.

    Before schema 4 all patches were of 64 px; before schema 5 no scores were adjusted for the place.
    """
    if 1 <= description.get("schema", 0) < 4:
        description = {"patch_px": PATCH_PX} | description
    if 1 <= description.get("schema", 0) < 5:
        description = {"adjustment": None} | description
    if description.get("schema", 0) != 1:
        return description
    model = description.get("model")
    loss = description.get("score") == "reconstruction" and isinstance(model, dict) and model.get("name") == "bvae"
    return description | {"context": [], "members": []} | ({"score": "elbo"} if loss else {})


def _load(folder: BundleFolder, anyway: bool) -> Detector:
    description = _describe(folder)
    _check(folder, description)
    members = [_member(folder, name, description, anyway) for name in description["members"]]
    detector = _built(folder, description, members)
    if not anyway and (names := not_finite(detector)):
        raise FormatError(f"{folder.url}: {names[0]} holds numbers that are not finite")
    return detector


def _check(folder: BundleFolder, description: dict[str, Any]) -> None:
    """FormatError unless every field has its type, and names are what names can be."""
    file_name = folder.name
    for fault in lacking(description):
        raise FormatError(f"{folder.url}: {fault}; rayad check lists all that is wrong")
    files.check_hashes(description["sha256"], file_name)
    context = description["context"]
    if not all(name in CONTEXT for name in context) or len(set(context)) < len(context):
        raise FormatError(
            f"{file_name}: 'context' has different names of {', '.join(CONTEXT)}, not {shortened(context)}"
        )
    for name, kind in ORIGIN.items():
        if name in description["provenance"] and not isinstance(description["provenance"][name], kind):
            value = shortened(description["provenance"][name])
            raise FormatError(f"{file_name}: {name} of 'provenance' is {_called(kind)}, not {value}")
    files.check_members(description["members"], file_name)


def _member(folder: BundleFolder, name: str, description: dict[str, Any], anyway: bool) -> Detector:
    member = _load(folder.member(name, description), anyway)
    if member.name != name:
        raise FormatError(f"{folder.url}: member {name} calls itself {shortened(member.name)}; names and folders agree")
    return member


def _built(folder: BundleFolder, description: dict[str, Any], members: list[Detector]) -> Detector:
    with _explained(f"{folder.name}: 'preprocessing'"):
        settings = dict(description["preprocessing"])
        kind = settings.pop("kind", "mammogram")  # before there were several kinds, all were of mammograms
        preprocessing = catalog.restored(_plug_in("imaging", kind).Preprocessing, settings)
    with _explained(f"{folder.name}: 'aggregation'"):
        aggregation = catalog.restored(Aggregation, description["aggregation"])
    parts = {kind: _part(folder, kind, description) for kind in ("model", "density")}
    adjustment, calibration = _adjustment(folder, description), _calibration(folder, description)
    teaching = _teaching(folder, description)
    with _explained(f"{folder.name}: 'score'"):
        context, patch_px = tuple(description["context"]), description["patch_px"]
        score = score_named(
            description["score"],
            context=context,
            members=tuple(members),
            patch_px=patch_px,
            teaching=teaching,
            **parts,
        )
    detector = Detector(
        name=description["name"],
        score=score,
        preprocessing=preprocessing,
        aggregation=aggregation,
        adjustment=adjustment,
        calibration=calibration,
        provenance=description["provenance"],
    )
    if patch_px != detector.patch_px:
        raise FormatError(
            f"{folder.name}: 'patch_px' is {shortened(patch_px)}, but the score is of patches of {detector.patch_px} px"
        )
    return detector


def _adjustment(folder: BundleFolder, description: dict[str, Any]) -> Adjustment | None:
    if description["adjustment"] is None:
        return None
    tensor_url, data = folder.tensors("adjustment", description)
    files.header(data, tensor_url)
    with _explained(f"{folder.name}: 'adjustment'"):
        smoothing = catalog.restored(Aggregation, description["adjustment"])
    with _explained(tensor_url):
        return Adjustment.from_tensors(safetensors.numpy.load(data), smoothing)


def _calibration(folder: BundleFolder, description: dict[str, Any]) -> Calibration | None:
    if "calibration" not in description["sha256"]:
        return None
    tensor_url, data = folder.tensors("calibration", description)
    files.header(data, tensor_url)
    with _explained(tensor_url):
        return Calibration.from_tensors(safetensors.numpy.load(data))


def _teaching(folder: BundleFolder, description: dict[str, Any]) -> Teaching | None:
    """What labels taught; none where the score is of another kind, whose bundle has no such file."""
    is_taught = description["score"] in taught.KINDS
    if is_taught != ("taught" in description["sha256"]):
        file = "has no hash of" if is_taught else "needs no"
        raise FormatError(f"{folder.name}: a detector by {shortened(description['score'])} {file} taught.safetensors")
    if not is_taught:
        return None
    tensor_url, data = folder.tensors("taught", description)
    files.header(data, tensor_url)
    with _explained(tensor_url):
        return Teaching.from_tensors(description["score"], safetensors.numpy.load(data))


def _part(folder: BundleFolder, kind: str, description: dict[str, Any]) -> Part | None:
    part_description = description[kind]
    if part_description is None:
        return None
    tensor_url, data = folder.tensors(kind, description)
    declared = files.header(data, tensor_url)
    with _explained(f"{folder.name}: {kind!r}"):
        name, config, variables = _configuration(
            kind, part_description, sum(tensor.numel() for tensor in declared.values())
        )
    build = partial(config.build, variables) if kind == "density" else config.build
    with _explained(f"{tensor_url}: does not fit {name} of detector.json"):
        _require_tensors(build, declared)
        module = build()
        module.load_state_dict(safetensors.torch.load(data))
    return Part(name, config, module.eval(), variables)


def _configuration(kind: str, description: dict[str, Any], numbers: int) -> tuple[str, Any, int]:
    """A part's plug-in, its configuration and its number of variables.

    Args:
        numbers: in its tensors; no size can be larger, but for small ones.
    """
    if set(description) != {"name", "config", "variables"} or not isinstance(description["config"], dict):
        raise OptionError(f"it has name, config (an object) and variables, not {shortened(description)}")
    variables, largest = description["variables"], max(numbers, SMALL)
    if type(variables) is not int or not 0 <= variables <= min(largest, MOST_VARIABLES):
        raise OptionError(f"variables are 0 to {MOST_VARIABLES:,}, not {shortened(variables)}")
    plug_in = _plug_in({"model": "models", "density": "density"}[kind], description["name"])
    return description["name"], catalog.restored(plug_in.Config, description["config"], largest), variables


def _plug_in(folder: str, name: Any) -> ModuleType:
    if not isinstance(name, str):
        raise OptionError(f"the name of what it is is a text, not {shortened(name)}")
    return catalog.find(folder, name)


def _require_tensors(build: Callable[[], nn.Module], declared: dict[str, Tensor]) -> None:
    """FormatError or RuntimeError unless a file's tensors are those of the module, none in fewer bytes than there."""
    with torch.device("meta"):
        outline = build()
    outline.to("meta")
    names = outline.state_dict().keys()
    if unexpected := sorted(names ^ declared.keys()):
        fault = "is none of its tensors" if unexpected[0] in declared else "is missing"
        more = f", and {len(unexpected) - 1} more are not as they should be" if len(unexpected) > 1 else ""
        raise FormatError(f"{shortened(unexpected[0])} {fault}{more}")
    outline.load_state_dict(declared)
    for name, tensor in outline.state_dict().items():
        declared_type, expected_type = declared[name].dtype, tensor.dtype
        if (
            declared_type.itemsize < expected_type.itemsize
            or declared_type.is_floating_point != expected_type.is_floating_point
        ):
            raise FormatError(f"{shortened(name)} is of {declared_type}, not of {expected_type}")


@contextmanager
def _explained(subject: str) -> Iterator[None]:
    """Whatever making something of a bundle raises, as one sentence that names the file and the field."""
    try:
        yield
    except IMPOSSIBLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"{subject}: {reason[:300]}") from error
