"""A GPU that is not there is said within seconds, by every command that takes one, before anything is computed."""

import subprocess
import sys
import time

import pytest
import torch
from served import free_port

from rayad import cli
from rayad.imaging.mammogram import Preprocessing
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor

PHANTOM = ("--dataset", "phantom", "--settings", "patients=30")
MAPPED = {
    "calibrate": (*PHANTOM, "--scores", "scores", "--gpu", "64"),
    "combine": (*PHANTOM, "--scores", "scores", "--out", "out", "--name", "both", "--gpu", "64"),
    "adjust": (*PHANTOM, "--out", "out", "--name", "adjusted", "--gpu", "64"),
    "teach": (*PHANTOM, "--scores", "scores", "--out", "out", "--name", "taught", "--gpu", "64"),
    "evaluate": (*PHANTOM, "--out", "out", "--gpu", "64"),
}


@pytest.fixture
def detector(tmp_path, monkeypatch, healthy) -> str:
    """A calibrated floor, in the folder that commands are given in."""
    monkeypatch.chdir(tmp_path)
    provenance = {"made_of": "floor", "corpus": "none", "dataset": "none", "step_mm": 3.2}
    floor = Detector("floor", Floor("brightness"), Preprocessing(), calibration=healthy, provenance=provenance)
    bundle.save(floor, str(tmp_path / "floor"))
    return "floor"


@pytest.fixture(scope="module")
def healthy():
    places = torch.arange(12.0).reshape(3, 4).numpy()
    return calibrate({str(number): [places + number] for number in range(30)})


def refused(arguments: list[str], sentence: str, capsys) -> None:
    began = time.monotonic()
    assert cli.run(arguments) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("command", MAPPED)
def test_stages_that_score(detector, command, capsys, tmp_path):
    arguments = [command, "--detector", detector, *MAPPED[command]]
    refused(arguments, "1 worker needs 64 GPUs (the cluster has 0)", capsys)
    assert not (tmp_path / "scores").exists()
    assert not list(tmp_path.glob("out/*.*"))


@pytest.mark.parametrize("command", ["demo", "run"])
def test_a_run_that_would_train(command, capsys, tmp_path):
    recipe = ("demo",) if command == "run" else ()
    out = tmp_path / "out"
    refused(
        [command, *recipe, "--out", str(out), "--workers.number", "3", "--workers.gpu", "1"],
        "3 workers need 3 GPUs (the cluster has 0)",
        capsys,
    )
    assert not (out / "corpus").exists()


def test_heatmaps_of_many_images_and_of_few(detector, capsys, tmp_path):
    names = [f"{number}.pgm" for number in range(9)]
    for name in names:
        (tmp_path / name).write_bytes(b"P5 400 400 255\n" + bytes(160_000))
    arguments = ["heatmap", "--detector", detector, "--out", "out", "--spacing-mm", "0.2", "--gpu", "64", "--images"]
    refused([*arguments, *names], "1 worker needs 64 GPUs (the cluster has 0)", capsys)
    if not torch.cuda.is_available():
        refused([*arguments, names[0]], "a GPU was asked for, but torch finds none on this machine", capsys)
    assert not list(tmp_path.glob("out/*.npz"))


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_service(detector):
    command = [sys.executable, "-m", "rayad.cli", "serve", "--detector", detector, "--replicas.gpu", "1"]
    done = subprocess.run([*command, "--listening.port", str(free_port())], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "rayad: 1 scorer needs 1 GPU (the cluster has 0)"
