"""The experiment of Dietrichstein et al. 2022 by one command, on trees in the layouts of DDSM and CBIS-DDSM."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from papers import IMAGES, Sizes, write_cbis, write_ddsm

from rayad import outputs, storage
from rayad.recipes import SEVEN

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
SIZES = Sizes(share=100, height=384, width=288)
FEWER = replace(SIZES, share=230)
"""Of healthy cases: an epoch of f-AnoGAN in the paper's size took 20 minutes for 960 patches on two busy cores."""
REHEARSAL = ("--epochs", "1", "--density-epochs", "1", "--picture", "spacing_mm=0.8", "--step-mm", "6.4")
FLOORS = {"rayad": 7, "laptop": 4}
"""Preset -> rows beside the seven detectors: floors, and those of specks."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The two data sets at a hundredth of their counts, healthy cases at less."""
    folder = tmp_path_factory.mktemp("papers")
    write_ddsm(folder / "ddsm", FEWER)
    write_cbis(folder / "cbis-ddsm", SIZES)
    return folder


def command(tree: Path, preset: str, out: Path) -> list[str]:
    """The one command, its epochs cut."""
    sources = ("--source", f"{tree}/ddsm", "--test-source", f"{tree}/cbis-ddsm", "--out", f"{out}")
    spacing = ("--test-settings", f"spacing_mm={SIZES.spacing_mm}")
    return [sys.executable, "-m", "rayad.cli", "run", "ddsm", *sources, *spacing, "--preset", preset, *REHEARSAL]


def ran(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def stopped(words: list[str], begun: Path) -> int:
    """Give the command, stop it as Ctrl-C does once a file is there; the exit code."""
    process = psutil.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not begun.exists():
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    return process.wait(120)


def written(folder: Path) -> dict[Path, int]:
    """When each file was written, but for the mark of a folder, which a command makes anew."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file() and file.name != outputs.MARK}


@pytest.mark.parametrize("preset", ["paper", "rayad", "laptop"])
def test_the_one_command(tree, tmp_path, preset):
    words = command(tree, preset, tmp_path)
    assert stopped(words, tmp_path / "models" / "cae" / "detector.json") == 128 + signal.SIGINT
    trained = os.stat(tmp_path / "models" / "cae" / "detector.json").st_mtime_ns
    ended = ran(words)
    assert ended.returncode == 0, ended.stderr
    assert os.stat(tmp_path / "models" / "cae" / "detector.json").st_mtime_ns == trained
    changes = "Other than the recipe says: epochs=1, density_epochs=1, picture=spacing_mm=0.8, step_mm=6.4."
    assert changes in ended.stdout

    results = storage.read_json(f"{tmp_path}/report/results.json")
    rows = Counter(row["lesion"] for row in results["rows"])
    assert rows == dict.fromkeys(("mass", "calcification"), 7 + FLOORS.get(preset, 0))
    assert [row["detector"] for row in results["rows"] if row["lesion"] == "mass"][:7] == list(SEVEN)
    assert all(row["pixel_auc"]["value"] > 0 for row in results["rows"])
    assert len(results["literature"]) == 14
    assert results["calibration_patients"] == 0
    assert changes in results["notes"]
    assert {"panel", "distributions", "strip-cae", "strip-cae-spn"} <= set(results["figures"])
    assert (tmp_path / "report" / "index.html").read_text().count("Dietrichstein et al. 2022") > 1
    if preset == "paper":
        assert any("79" in note and "mass" in note for note in results["notes"])
    else:
        judged = {name for name, part in IMAGES if part == "test"}
        assert len(results["images"]) == sum(SIZES.of(IMAGES[name, "test"]) for name in judged)

    before = written(tmp_path)
    assert ran(words).returncode == 0
    assert written(tmp_path) == before
