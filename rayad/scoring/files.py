"""The files of a detector bundle, which may be a stranger's: no more is read than belongs to it and can be held.

docs/formats.md says what is refused. Everything here looks at names, links and sizes; nothing is made of the numbers.
"""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from rayad import storage
from rayad.bounded import parse_json, require_size
from rayad.errors import FormatError
from rayad.terminal import shortened

LONGEST_NAME = 100
"""Characters of a member's name."""
MOST_MEMBERS = 64
"""Members of a bundle, with the members of members."""
DEEPEST = 4
"""Levels of members in members."""
LARGEST_DESCRIPTION = 4_000_000
"""Bytes of detector.json."""
LARGEST_TENSORS = 4_000_000_000
"""Bytes of all tensor files of a bundle and its members."""
LARGEST_HEADER = 1_000_000
"""Bytes of a tensor file's header."""
MOST_DIMENSIONS = 8
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What numbers are called in a tensor file."""
HASHED = 16
"""Digits of a file's hash that its name has."""
_HASH = re.compile("[0-9a-f]{64}")
_OWN = re.compile(rf"detector\.json|(model|density|adjustment|calibration|taught)(-[0-9a-f]{{{HASHED}}})?\.safetensors")
_NAME = re.compile(rf"[\w.\- ]{{1,{LONGEST_NAME}}}")


@dataclass
class Allowance:
    """What is left of the members and bytes that a bundle may have."""

    members: int = MOST_MEMBERS
    bytes: int = LARGEST_TENSORS


@dataclass(frozen=True)
class BundleFolder:
    """The folder of a bundle, or of a member in it."""

    url: str
    top: str
    """URL of the outermost bundle."""
    sha256: str = ""
    """Of detector.json, as the bundle around a member has it; empty: not known."""
    level: int = 0
    """0 of the outermost bundle."""
    left: Allowance = field(default_factory=Allowance)

    @property
    def name(self) -> str:
        """URL of detector.json."""
        return storage.join(self.url, "detector.json")

    def description(self) -> dict[str, Any]:
        """What detector.json says.

        Raises:
            FormatError: it is not there, no JSON, too large, or not the one that the bundle around a member names.
            StorageError: it cannot be read, or is a link that leads out of the bundle.
        """
        value = parse_json(self.content(), self.name, LARGEST_DESCRIPTION)
        if not isinstance(value, dict):
            raise FormatError(f"{self.name}: a JSON object is wanted, not a {type(value).__name__}")
        return value

    def content(self) -> bytes:
        """The content of detector.json; errors as of `description`."""
        if not storage.exists(self.name):
            raise FormatError(f"{self.url}: no detector here, detector.json is missing")
        require_size(storage.size(self.name), self.name, LARGEST_DESCRIPTION)
        data = storage.read_bytes(self.name, (self.top,))
        if self.sha256 and hashlib.sha256(data).hexdigest() != self.sha256:
            raise FormatError(f"{self.name}: altered or truncated, its hash is not the one in the bundle around it")
        return data

    def tensors(self, kind: str, description: dict[str, Any]) -> tuple[str, bytes]:
        """URL and content of a tensor file.

        Args:
            kind: model, density, adjustment, calibration or taught.
            description: what detector.json says.

        Raises:
            FormatError: it is missing, too large or altered.
            StorageError: it cannot be read, or is a link that leads out of the bundle.
        """
        if kind not in description["sha256"]:
            raise FormatError(f"{self.url}: detector.json has a {kind}, but no hash of {kind}.safetensors")
        tensor_url = storage.join(self.url, tensor_file(kind, description))
        if not storage.exists(tensor_url):
            raise FormatError(f"{tensor_url}: missing, though detector.json names it")
        self.left.bytes -= storage.size(tensor_url)
        if self.left.bytes < 0:
            limit = f"{LARGEST_TENSORS / 1e9:g} GB"
            raise FormatError(
                f"{tensor_url}: with this file the tensors of a bundle would have more than {limit} in all"
            )
        data = storage.read_bytes(tensor_url, (self.top,))
        if hashlib.sha256(data).hexdigest() != description["sha256"][kind]:
            raise FormatError(f"{tensor_url}: altered or truncated, its hash is not the one in detector.json")
        return tensor_url, data

    def member(self, name: str, description: dict[str, Any]) -> "BundleFolder":
        """The folder of a member; FormatError where a bundle has too many of them, or too many levels."""
        self.left.members -= 1
        if self.left.members < 0 or self.level == DEEPEST:
            raise FormatError(
                f"{self.url}: a bundle has at most {MOST_MEMBERS} members in {DEEPEST} levels, this one has more"
            )
        hashed = is_hashed(description)
        sha256 = description["sha256"].get(f"members/{name}", "") if hashed else ""
        if hashed and not sha256:
            raise FormatError(f"{self.url}: detector.json has a member {name}, but no hash of it")
        url = storage.join(self.url, member_folder(name, description))
        return replace(self, url=url, sha256=sha256, level=self.level + 1)


def opened(url: str) -> BundleFolder:
    """The folder of a bundle; it may be a link itself."""
    return BundleFolder(url, url)


def is_hashed(description: dict[str, Any]) -> bool:
    """Whether the names of a bundle's files have the hashes of what is in them: since schema 3."""
    return bool(description["schema"] >= 3)


def tensor_file(kind: str, description: dict[str, Any]) -> str:
    """Name of the file of model, density, adjustment, calibration or what was taught, relative to the bundle."""
    hashed = f"-{description['sha256'][kind][:HASHED]}" if is_hashed(description) else ""
    return f"{kind}{hashed}.safetensors"


def member_folder(name: str, description: dict[str, Any]) -> str:
    """Name of the folder of a member, relative to the bundle."""
    hashed = f"-{description['sha256'][f'members/{name}'][:HASHED]}" if is_hashed(description) else ""
    return f"members/{name}{hashed}"


def is_own(name: str) -> bool:
    """Whether a file with this name, relative to a bundle, is one of those that bundles have."""
    while name.startswith("members/"):
        name = name.removeprefix("members/").partition("/")[2]
    return bool(_OWN.fullmatch(name))


def remove_others(url: str, keep: Collection[str]) -> None:
    """Remove the files of the bundles that were at a place before: all whose names bundles have, but for these."""
    head = storage.join(url, "")
    for file in storage.listing(url, roots=(url,)):
        name = file.removeprefix(head)
        if is_own(name) and name not in keep:
            storage.remove(file)
            storage.remove_empty(file.rpartition("/")[0])


def check_hashes(hashes: dict[str, Any], where: str) -> None:
    """FormatError unless all of these are SHA-256 in hexadecimal digits."""
    for kind, sha256 in hashes.items():
        if not isinstance(sha256, str) or not _HASH.fullmatch(sha256):
            complaint = f"{shortened(sha256)} for {shortened(kind)}"
            raise FormatError(f"{where}: 'sha256' has 64 hexadecimal digits for each file, not {complaint}")


def check_members(names: Any, where: str) -> None:
    """FormatError unless these are the names that members of a bundle can have: plain words, all different."""
    if not isinstance(names, list):
        raise FormatError(f"{where}: 'members' must be a list of names, not {shortened(names)}")
    for name in names:
        if not is_plain(name):
            raise FormatError(
                f"{where}: a member's name is up to {LONGEST_NAME} letters, digits, blanks and _ . -,"
                f" not {shortened(name)}"
            )
    if len(set(names)) < len(names):
        raise FormatError(f"{where}: two members have the same name; each is a folder of its own")


def is_plain(name: Any) -> bool:
    """Whether a name can be that of a member's folder: letters, digits, blanks and _ . - alone, and no . or .. ."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and bool(name.strip(" ."))


def header(data: bytes, where: str) -> dict[str, Tensor]:
    """What a tensor file says that it holds: tensors by name, without their numbers (torch's device "meta").

    Raises:
        FormatError: it is no tensor file, or holds other numbers than its header says.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise FormatError(f"{where}: is not a safetensors file")
    entries = parse_json(data[8 : 8 + size], f"{where}: its header", LARGEST_HEADER)
    if not isinstance(entries, dict):
        raise FormatError(f"{where}: the header of a safetensors file is an object, not {shortened(entries)}")
    entries.pop("__metadata__", None)
    tensors = {name: _outline(name, entry, where) for name, entry in entries.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) != len(data) - 8 - size:
        raise FormatError(f"{where}: has another number of bytes than its header says")
    return tensors


def _outline(name: str, entry: Any, where: str) -> Tensor:
    shape, kind = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or kind not in TYPES or not isinstance(shape, list) or not _are_sizes(shape):
        raise FormatError(
            f"{where}: tensor {shortened(name)} has no type or shape that rayad writes: {shortened(entry)}"
        )
    return torch.empty(shape, dtype=TYPES[kind], device="meta")


def _are_sizes(shape: list[Any]) -> bool:
    """Whether these are the sizes of a tensor that a file can hold."""
    are_sizes = len(shape) <= MOST_DIMENSIONS and all(type(n) is int and 0 <= n <= LARGEST_TENSORS for n in shape)
    return are_sizes and prod(shape) <= LARGEST_TENSORS
