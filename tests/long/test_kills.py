"""A command that is killed leaves no process and no temporary file; given again, it ends as if nothing had happened."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from served import PATIENTS, made, png

from rayad import outputs, storage
from rayad.leftovers import MARK
from rayad.scoring import bundle

SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
"""And the exit code that each leads to."""


def start(*words: str, temporary: str = "") -> psutil.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", MARK, "TMPDIR")}
    environment |= {"TMPDIR": temporary} if temporary else {}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    return psutil.Popen([sys.executable, "-m", "rayad.cli", *words], env=environment, **pipes)


def killed(words: tuple[str, ...], number: signal.Signals, begun: Callable[[], bool]) -> None:
    """Give a command, kill it in the middle, and see that nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as temporary:  # a short path, for Ray's sockets
        process = start(*words, temporary=temporary)
        while not begun():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        children = process.children(recursive=True)
        process.send_signal(number)
        assert process.wait(60) == SIGNALS[number]
        assert not psutil.wait_procs(children, timeout=40)[1]
        assert not os.listdir(temporary)


def hidden(folder: Path) -> list[Path]:
    """Files that are neither result nor mark of a folder."""
    marks = (outputs.MARK, outputs.IGNORE)
    return [file for file in folder.rglob(".*") if file.is_file() and file.name not in marks]


def from_tomorrow(folder: Path) -> None:
    """As if the clock had been set back by a day since the files were written."""
    for file in folder.rglob("*"):
        at = file.stat()
        os.utime(file, (at.st_atime + 86_400, at.st_mtime + 86_400))


@pytest.mark.parametrize(("number", "done"), [*zip(SIGNALS, [0, 3, 7], strict=True)])
def test_heatmaps(tmp_path, number, done):
    """Killed before the first, and after some."""
    (tmp_path / "in").mkdir()
    bundle.save(made(0), str(tmp_path / "detector"))
    for i in range(12):
        (tmp_path / "in" / f"{i:02}.png").write_bytes(png(PATIENTS, list(PATIENTS.exams())[i % 6]))
    usual = ("heatmap", "--detector", str(tmp_path / "detector"), "--images", str(tmp_path / "in"))
    usual += ("--spacing-mm", "0.8")
    assert start(*usual, "--out", str(tmp_path / "whole")).wait(300) == 0
    out = tmp_path / "out"
    again = (*usual, "--out", str(out))
    began = time.monotonic()

    def begun() -> bool:
        return len(list(out.glob("*.npz"))) >= done if done else time.monotonic() > began + 3

    killed(again, number, begun)
    assert not hidden(tmp_path)
    from_tomorrow(out)
    assert start(*again).wait(300) == 0
    for file in (tmp_path / "whole").glob("*.npz"):
        with np.load(file) as one, np.load(out / file.name) as other:
            for name in one.files:
                np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folder of a corpus and of a detector that was trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    healthy = ("--settings", "patients=24", "diseased=0.0", "height=256", "width=192")
    assert start("ingest", "--dataset", "phantom", *healthy, "--out", str(folder / "corpus")).wait(300) == 0
    small = ("--settings", "width=4", "latents=6", "--schedule.epochs", "1", "--workers.number", "1")
    words = ("train", "--corpus", str(folder / "corpus"), *small, "--out", str(folder / "cae"))
    assert start(*words).wait(300) == 0
    return folder


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("number", "done"), [*zip(SIGNALS, [0, 2, 5], strict=True)])
def test_a_sweep(trained, tmp_path, number, done):
    """Killed before the first trial has ended, and after some: it goes on, and ends with as many as were wanted."""
    out = tmp_path / "sweep"
    search = ("--search.trials", "8", "--search.seeds", "1", "--search.grace", "0", "--em.epochs", "20")
    space = ("--space", "inputs=2..6", "replicas=2,4")
    words = ("sweep", "--corpus", str(trained / "corpus"), "--detector", str(trained / "cae"), *space, *search)
    words += ("--out", str(out))

    def begun() -> bool:
        file = out / "sweep.json"
        if done:
            return file.exists() and len(storage.read_json(str(file))["rows"]) >= done
        return (out / "optuna.db").exists()

    killed(words, number, begun)
    from_tomorrow(out)
    assert start(*words).wait(600) == 0
    found = storage.read_json(str(out / "sweep.json"))
    assert len(found["rows"]) >= 8
    assert all(math.isfinite(value) for value in found["seeds"]["best"]["values"])


MOMENTS = {
    signal.SIGKILL: "corpus/parts/shard-00001.json",
    signal.SIGTERM: "models/cae/detector.json",
    signal.SIGINT: "detectors/cae-spn/detector.json",
}
"""Files that are there when a run is killed: in the middle of ingest, before a density is fitted, before the report."""


@pytest.mark.timeout(3000)
def test_a_run_that_is_killed_three_times(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert start("run", "demo", "--out", str(whole)).wait(1500) == 0
    for number, file in MOMENTS.items():
        killed(("run", "demo", "--out", str(out)), number, (out / file).exists)
        assert not hidden(out)
        from_tomorrow(out)
    assert start("run", "demo", "--out", str(out)).wait(1500) == 0
    one, other = (storage.read_json(str(folder / "report/results.json")) for folder in (whole, out))
    assert one["rows"] == other["rows"]
