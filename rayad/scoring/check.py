"""Is a detector bundle what docs/formats.md says? Everything that can be told without an image.

Loading refuses a bundle whose hashes or shapes do not fit. This looks further: at fields that are missing or unknown,
at numbers that are no parameters of a density, and at the region graph that follows from the seed.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from rayad import storage
from rayad.scoring import bundle
from rayad.scoring.detector import Detector
from rayad.scoring.files import member_folder, tensor_file
from rayad.terminal import printable, shortened


@runtime_checkable
class Checked(Protocol):
    """A model or density that can tell what is wrong with its parameters."""

    def faults(self) -> Iterator[str]: ...


def faults(url: str) -> list[str]:
    """What is wrong with the bundle, a sentence each; nothing if it is whole.

    Raises:
        FormatError: there is no bundle, it is of a newer schema, or its tensors are not those it names.
    """
    description = bundle.describe(url)
    lacking = [*bundle.lacking(description), *_unknown(description)]
    return lacking or list(_of_bundle(url, description, bundle.load(url, anyway=True)))


def _unknown(description: dict[str, Any]) -> Iterator[str]:
    for name in description.keys() - bundle.REQUIRED.keys():
        yield f"detector.json has a field {shortened(name)} that nobody knows"


def _of_bundle(url: str, description: dict[str, Any], detector: Detector) -> Iterator[str]:
    """Of a bundle that could be loaded, and of its members."""
    yield from (
        f"{printable(name)} is beside the bundle's files, and nothing names it" for name in _strangers(url, description)
    )
    for member in detector.members:
        member_url = storage.join(url, member_folder(member.name, description))
        member_description = bundle.describe(member_url)
        member_faults = [*_unknown(member_description), *_of_bundle(member_url, member_description, member)]
        yield from (f"member {member.name}: {fault}" for fault in member_faults)
    yield from _of_parts(detector)


def _strangers(url: str, description: dict[str, Any]) -> Iterator[str]:
    known_names = {
        "detector.json",
        *(tensor_file(kind, description) for kind in description["sha256"] if "/" not in kind),
    }
    members = storage.join(url, "members", "")
    bundle_files = [file for file in storage.listing(url, roots=(url,)) if not file.startswith(members)]
    for name in (file.rsplit("/", 1)[-1] for file in bundle_files):
        if name.endswith(".safetensors") and name not in known_names:
            yield name


def _of_parts(detector: Detector) -> Iterator[str]:
    yield from (f"{name} holds numbers that are not finite" for name in bundle.not_finite(detector))
    for kind, part in (("model", detector.model), ("density", detector.density)):
        if part and isinstance(part.module, Checked):
            yield from (f"{kind}: {fault}" for fault in part.module.faults())
