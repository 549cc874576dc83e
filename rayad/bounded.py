"""What comes from outside, read within bounds: JSON, and numpy's files."""

import io
import json
import math
import zipfile
import zlib
from tokenize import TokenError
from typing import Any, NoReturn

import numpy as np

from rayad.errors import FormatError

DEEPEST = 64
"""Levels of objects and lists in each other, in JSON."""
LARGEST_JSON = 256_000_000
"""Bytes of a JSON text."""
LARGEST_ARRAYS = 4_000_000_000
"""Bytes of the arrays of an npz file."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_NO_ARRAY = (ValueError, KeyError, TypeError, OverflowError, RecursionError, MemoryError, SyntaxError, TokenError)
"""What numpy makes of a header that is not its own."""
_NO_ZIP = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError, RuntimeError)
"""What zipfile makes of a damaged archive, one that is locked, or one that is packed in another way."""


def parse_json(text: bytes | str, where: str, largest: int = LARGEST_JSON) -> Any:
    """The value of a JSON text.

    Args:
        where: of the text, for the error's message.
        largest: bytes that are parsed; a list of empty lists takes some 25 times as many in memory.

    Raises:
        FormatError: it is not JSON, too large, too deep, or has a number that is not finite.
    """
    require_size(len(text), where, largest)
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:
        raise FormatError(f"{where}: is not JSON: {error}") from error
    if _is_deep(value):
        raise _too_deep(where)
    return value


def require_size(size: int, where: str, largest: int = LARGEST_JSON) -> None:
    """FormatError where a JSON text has more bytes than are parsed."""
    if size > largest:
        raise FormatError(f"{where}: JSON of at most {largest / 1e6:g} MB is read, not of {size / 1e6:.4g} MB")


def load_npy(data: bytes, where: str) -> np.ndarray:
    """The array of an npy file, which must have as many bytes as its header declares; never a pickle.

    Raises:
        FormatError: it is no such file.
    """
    file = io.BytesIO(data)
    try:
        shape, _, kind = _HEADERS[np.lib.format.read_magic(file)](file)
        declared, present = math.prod(shape) * kind.itemsize, len(data) - file.tell()
        if declared != present:
            raise FormatError(f"{where}: an npy file whose header declares {declared} bytes of numbers has {present}")
        file.seek(0)
        return np.load(file, allow_pickle=False)
    except _NO_ARRAY as error:
        raise FormatError(f"{where}: is not an npy file of numbers: {type(error).__name__}") from error


def load_npz(data: bytes, where: str, largest: int = LARGEST_ARRAYS) -> dict[str, np.ndarray]:
    """The arrays of an npz file by their names.

    Args:
        largest: bytes of all of them together, as the file declares them; no more are decompressed.

    Raises:
        FormatError: it is no such file, or larger.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > largest:
                raise FormatError(
                    f"{where}: arrays of at most {largest / 1e6:g} MB are read, not of {size / 1e6:.4g} MB"
                )
            return {
                entry.filename.removesuffix(".npy"): load_npy(archive.read(entry), f"{where}, {entry.filename!r}")
                for entry in entries
            }
    except _NO_ZIP as error:
        raise FormatError(f"{where}: is not an npz file: {error}") from error


def _refuse(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _is_deep(value: Any) -> bool:
    """Whether objects and lists nest deeper than they may, level by level."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        contents = (container.values() if isinstance(container, dict) else container for container in level)
        level = [child for children in contents for child in children if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _too_deep(where: str) -> FormatError:
    return FormatError(f"{where}: objects and lists of JSON may nest {DEEPEST} levels deep, these nest deeper")
