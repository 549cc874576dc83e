"""Nobody but a command's own processes can ask anything of the Ray that it starts."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ports import WITHOUT, is_loopback, watched

from rayad.cli import COMMANDS, command
from rayad.cli.few import FEW
from rayad.datasets import phantom
from rayad.datasets.folder import export

STARTS_RAY = {name for name in COMMANDS if "address" in command(name).__dataclass_fields__}
PHANTOMS = ("--dataset", "phantom", "--settings", "patients=40", "height=256", "width=192", "spacing_mm=0.8")


def exported(folder: Path) -> str:
    """A folder of as many images as start a Ray."""
    data = phantom.Dataset(patients=20, height=256, width=192, spacing_mm=0.8)
    export(data, [exam for exam in data.exams() if not exam.anomalous][: FEW + 1], str(folder))
    return str(folder)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_command_that_starts_ray_listens_on_the_loopback_alone(tmp_path):
    """But for `serve`, which test_serve asks."""
    corpus, models = str(tmp_path / "corpus"), str(tmp_path / "models")
    trained, fitted = f"{models}/cae", f"{models}/cae-spn"
    others, scores = ("--detector", trained, fitted), str(tmp_path / "scores")
    small = ("--picture", "spacing_mm=0.8", "--sampling.patches", "20")
    commands = {
        "ingest": (*PHANTOMS, *small, "--out", corpus),
        "inspect": (*PHANTOMS, *small[:2], "--out", str(tmp_path / "page")),
        "train": ("--corpus", corpus, "--out", trained, "--settings", "width=4", "--schedule.epochs", "2"),
        "fit-density": ("--detector", trained, "--corpus", corpus, "--out", fitted, "--em.epochs", "2"),
        "sweep": ("--detector", trained, "--corpus", corpus, "--out", str(tmp_path / "sweep"), "--space", "inputs=2..4",
                  "--search.trials", "2", "--search.seeds", "1", "--em.epochs", "2"),
        "pair": ("--detector", trained, *PHANTOMS, "--out", str(tmp_path / "paired"), "--em.epochs", "2"),
        "calibrate": (*others, *PHANTOMS, "--scores", scores),
        "combine": (*others, *PHANTOMS, "--scores", scores, "--out", str(tmp_path / "both"), "--name", "both"),
        "adjust": ("--detector", fitted, *PHANTOMS, "--out", str(tmp_path / "adjusted"), "--name", "adjusted"),
        "teach": (*others, *PHANTOMS, "--scores", scores, "--out", str(tmp_path / "taught"), "--name", "taught"),
        "evaluate": (*others, *PHANTOMS, "--out", str(tmp_path / "report")),
        "heatmap": ("--detector", fitted, "--images", exported(tmp_path / "in"), "--out", str(tmp_path / "maps"),
                    "--spacing-mm", "0.8"),
        "demo": ("--out", str(tmp_path / "demo")),
        "run": ("demo", "--out", str(tmp_path / "demo")),
        "benchmark": ("demo", "--out", str(tmp_path / "demo"), "--seeds", "1"),
    }  # fmt: skip
    assert set(commands) | {"serve"} == STARTS_RAY
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | WITHOUT
    for name, options in commands.items():
        words = [sys.executable, "-m", "rayad.cli", name, *options]
        process = psutil.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with watched(process) as sockets:
            printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert sockets, name
        assert [(name, *socket, who) for socket, who in sockets.items() if not is_loopback(socket[0])] == []
