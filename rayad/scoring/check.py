"""Is a detector bundle what docs/formats.md says? Everything that can be told without an image.

Loading refuses a bundle whose hashes or shapes do not fit. This looks further: at fields that are missing or unknown,
at numbers that are no parameters of a density, and at the region graph that follows from the seed.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import torch

from rayad import storage
from rayad.scoring import bundle
from rayad.scoring.calibrate import Calibration
from rayad.scoring.detector import Detector

REQUIRED = {
    "schema": int,
    "name": str,
    "score": str,
    "preprocessing": dict,
    "aggregation": dict,
    "model": (dict, type(None)),
    "density": (dict, type(None)),
    "context": list,
    "members": list,
    "sha256": dict,
    "provenance": dict,
}
"""Field of ``detector.json`` -> its type."""


@runtime_checkable
class Checked(Protocol):
    """A model or density that can tell what is wrong with its parameters."""

    def faults(self) -> Iterator[str]: ...


def faults(url: str) -> list[str]:
    """What is wrong with the bundle, a sentence each; nothing if it is whole.

    Raises:
        FormatError: there is no bundle, it is of a newer schema, or its tensors are not those it names.
    """
    said = bundle.describe(url)
    found = list(_of_description(said))
    if found:
        return found
    loaded = bundle.load(url, anyway=True)
    found += [f"{name} is beside the bundle's files, and nothing names it" for name in _strangers(url, said)]
    for name in said["members"]:
        found += [f"member {name}: {fault}" for fault in faults(storage.join(url, "members", name))]
    return [*found, *_of_parts(loaded), *_of_calibration(loaded.calibration)]


def _of_description(said: dict[str, Any]) -> Iterator[str]:
    for name, kind in REQUIRED.items():
        if name not in said:
            yield f"detector.json has no {name!r}"
        elif not isinstance(said[name], kind):
            yield f"{name!r} of detector.json is {said[name]!r}"
    for name in said.keys() - REQUIRED.keys():
        yield f"detector.json has a field {name!r} that nobody knows"


def _strangers(url: str, said: dict[str, Any]) -> Iterator[str]:
    known = {"detector.json", *(f"{kind}.safetensors" for kind in said["sha256"])}
    members = storage.join(url, "members", "")
    own = [file for file in storage.listing(url) if not file.startswith(members)]
    for name in (file.rsplit("/", 1)[-1] for file in own):
        if name.endswith(".safetensors") and name not in known:
            yield name


def _of_parts(one: Detector) -> Iterator[str]:
    yield from (f"{name} holds numbers that are not finite" for name in bundle.not_finite(one))
    for kind, part in (("model", one.model), ("density", one.density)):
        if part and isinstance(part.module, Checked):
            yield from (f"{kind}: {fault}" for fault in part.module.faults())


def _of_calibration(calibration: Calibration | None) -> Iterator[str]:
    for field in fields(calibration) if calibration else ():
        value = getattr(calibration, field.name)
        if hasattr(value, "dtype") and not torch.isfinite(torch.as_tensor(value)).all():
            yield f"calibration: {field.name} holds numbers that are not finite"
