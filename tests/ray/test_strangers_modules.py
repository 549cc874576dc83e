"""Files of Python beside a stranger's images are never run, neither by the command nor by its workers or decoders."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rayad.datasets import phantom

RAYAD = Path(sys.executable).with_name("rayad")
MODULES = ("re", "json", "numpy", "pandas", "pyarrow", "scipy", "PIL", "torch", "zstandard", "rayad", "sitecustomize")
TRACE = "raise SystemExit(open({trace!r}, 'a').write(__name__))"


def trap(folder: Path) -> Path:
    """Modules that leave a trace where they are run, and end what runs them; returns the trace."""
    trace = folder.parent / "trace"
    for name in MODULES:
        (folder / f"{name}.py").write_text(TRACE.format(trace=str(trace)))
    return trace


def test_a_command_that_is_given_among_a_strangers_files_runs_none_of_them(tmp_path):
    folder = tmp_path / "from-a-stranger"
    folder.mkdir()
    dataset = phantom.Dataset(patients=12, diseased=0.0, height=256, width=192, spacing_mm=0.8)
    for exam in dataset.exams():
        Image.fromarray((dataset.pixels(exam) * 255).astype(np.uint8)).save(folder / f"{exam.exam_id}.png")
    trace = trap(folder)
    words = [RAYAD, "ingest", "--dataset", "folder", "--source", ".", "--out", "../corpus", "--sampling.patches", "4"]
    settings = ["--settings", "healthy=true", "--spacing-mm", "0.8"]
    done = subprocess.run([*words, *settings], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, trace.exists()) == (0, False), done.stderr
    assert (tmp_path / "corpus" / "manifest.json").exists()
