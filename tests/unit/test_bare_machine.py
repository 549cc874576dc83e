"""The script for a borrowed GPU runs where there are torch, numpy, scipy and scikit-image, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
INSTALLED = ("torch", "torchgen", "functorch", "numpy", "scipy", "skimage", "triton")
THEIRS = ("typing_extensions.py", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "PIL")
FURTHER = ("imageio", "tifffile", "lazy_loader", "packaging", "numpy.libs", "scipy.libs", "pillow.libs", "nvidia")
"""What the installed ones bring."""


def test_the_benchmark_of_a_gpu_needs_nothing_but_torch_numpy_and_scipy(tmp_path):
    site = Path(torch.__file__).parents[1]
    for name in (*INSTALLED, *THEIRS, *FURTHER):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "benchmarks/gpu.py"), "--part", "circuit", "--part", "dense"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["what"].partition(":")[0] for row in rows} == {"circuit", "dense"}
    assert all(row["cpu_a_second"] > 0 for row in rows)
