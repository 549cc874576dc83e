"""Where a result comes from: the commit and the versions of what computed it."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("rayad", "torch", "ray", "numpy", "scipy", "scikit-image", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def machine() -> str:
    """The processor, its cores and the GPU of what computed a result."""
    cores = f"{os.cpu_count()} cores"
    import torch  # which takes seconds

    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([_processor(), cores, *gpu])


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")


def commit() -> str:
    """The commit of the code that runs, with "+changes" if it differs; "" where there is no git checkout."""
    folder = Path(__file__).parent
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        return revision + ("+changes" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    process = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return process.stdout.strip()
