"""The state of training in a file, by URL: written whole or not at all, and checked when it is read.

A checkpoint is one safetensors file: the tensors, and in its metadata the scalars as JSON and a SHA-256 of it
all. Nothing in it can run when it is loaded.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rayad import bounded, storage
from rayad.errors import FormatError, TrainingError
from rayad.progress import State


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder that holds the last checkpoint, `checkpoint.safetensors`."""

    url: str

    def save(self, state: State) -> None:
        """Put this state in the place of the last one.

        Raises:
            StorageError: it cannot be written; the last one is still there.
            TrainingError: it holds a number that is not finite.
        """
        try:
            scalars = json.dumps(state.scalars, allow_nan=False)
        except ValueError as error:
            raise TrainingError(f"{self._file()}: what is known of the training is not finite: {error}") from error
        # Copies: safetensors refuses names that share their memory.
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.tensors.items()}
        metadata = {"scalars": scalars, "sha256": _digest(tensors, scalars)}
        storage.write_bytes(self._file(), save(tensors, metadata))

    def load(self) -> State | None:
        """The last state, or None if there is none.

        Raises:
            FormatError: the file is truncated or was altered.
        """
        if not storage.exists(self._file()):
            return None
        data = storage.read_bytes(self._file())
        try:
            metadata = _metadata(data)
            tensors, scalars = load(data), bounded.parse_json(metadata["scalars"], "its scalars")
        except (SafetensorError, struct.error, FormatError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{self._file()}: is not a whole checkpoint: {error}") from error
        if _digest(tensors, metadata["scalars"]) != metadata.get("sha256"):
            raise FormatError(f"{self._file()}: was altered: its content does not match its SHA-256")
        return State(tensors, scalars)

    def _file(self) -> str:
        return storage.join(self.url, "checkpoint.safetensors")


def _metadata(data: bytes) -> dict[str, Any]:
    """The text entries of a safetensors file: 8 bytes of length, then a JSON header."""
    (length,) = struct.unpack_from("<Q", data)
    return bounded.parse_json(data[8 : 8 + length], "its header")["__metadata__"]


def _digest(tensors: dict[str, Tensor], scalars: str) -> str:
    digest = hashlib.sha256(scalars.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
