"""The user's folder for what can be made again: compiled kernels, torch's own."""

import os
from pathlib import Path


def cache() -> Path:
    """The folder, made if need be; OSError where it cannot be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayad"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
