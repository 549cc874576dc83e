"""Where a result comes from: the commit and the versions of what computed it."""

import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("rayad", "torch", "ray", "numpy", "scipy", "scikit-image")


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def commit() -> str:
    """The commit of the code that runs, with "+changes" if it differs; "" where there is no git checkout."""
    folder = Path(__file__).parent
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        return revision + ("+changes" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
