"""`rayad dashboard` for real: its page in a browser, its tools at their addresses, and nothing left when it stops."""

import signal
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime

import optuna
import psutil
import pytest
from torch.utils.tensorboard import SummaryWriter

from rayad import storage
from tests.browser.conftest import opened, overflow

SWEEP = {
    "name": "widths",
    "state": "running",
    "began": datetime.now(UTC).isoformat(),
    "updated": datetime.now(UTC).isoformat(),
    "corpus": "corpus",
    "objective": "validation loss",
    "space": {"width": "8 to 64"},
    "wanted": 4,
    "trials": {"whole": 3, "stopped": 0, "failed": 0},
    "best": {"value": 0.25, "settings": {"width": 32}},
}
ROWS = [{"detector": "cae", "lesion": "mass", "pixel_auc": {"value": 0.875, "low": 0.8, "high": 0.9}}]
REASON = "the file ends in the middle of its pixels"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A report, a sweep of three trials, a corpus with a failed image, and events."""
    folder = tmp_path_factory.mktemp("root")
    storage.write_json(str(folder / "out/report/results.json"), {"dataset": "phantom", "rows": ROWS})
    page = '<!doctype html><link rel="icon" href="data:,"><title>the report</title>'
    (folder / "out/report/index.html").write_text(page)
    storage.write_json(str(folder / "sweep/sweep.json"), SWEEP)
    study = optuna.create_study(study_name="sweep", storage=f"sqlite:///{folder / 'sweep/optuna.db'}")
    study.optimize(lambda trial: trial.suggest_int("width", 8, 64), n_trials=3)
    manifest = {"dataset": "phantom", "patches": 9, "images": 1, "failures": [{"exam_id": "e7", "reason": REASON}]}
    storage.write_json(str(folder / "corpus/manifest.json"), manifest)
    with SummaryWriter(str(folder / "out/models/cae/events")) as writer:
        writer.add_scalar("validation", 0.5, 1)
    return folder


@pytest.fixture(scope="module")
def dashboard(root):
    """The running command, and its lines on standard output: tool -> address and more."""
    command = [sys.executable, "-m", "rayad.cli", "dashboard", "--root", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: dict[str, str] = {}
    while "Optuna" not in lines or "TensorBoard" not in lines:
        line = process.stdout.readline()
        assert line, "the command ended"
        lines.update([line.strip().split(maxsplit=1)])
    yield process, lines
    process.terminate()
    process.wait()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def test_the_page_shows_runs_sweeps_and_faults_in_a_browser(dashboard, chromium):
    with opened(chromium, dashboard[1]["rayad"]) as page:
        words = " ".join(page.locator("body").inner_text().split())
        assert "cae 0.88 0.80 to 0.90" in words
        assert "3 of 4 trials" in words
        assert f"e7: {REASON}" in words
        page.locator('a[href$="index.html"]').click()
        assert page.title() == "the report"


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_the_window(dashboard, chromium, width):
    with opened(chromium, dashboard[1]["rayad"], width) as page:
        assert overflow(page) == 0


def test_the_tools_answer_at_the_printed_addresses(dashboard):
    _, lines = dashboard
    assert '"study_name": "sweep"' in get(lines["Optuna"].split()[0] + "/api/studies")
    assert "out/models/cae/events" in get(lines["TensorBoard"].split()[0] + "/data/runs")
    assert "training.json" in lines.get("Grafana", "training.json")


def test_it_stops_with_everything_that_it_started(dashboard):
    process, _ = dashboard
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    _, left = psutil.wait_procs(children, timeout=5)
    assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []  # its parent is gone: nobody asks


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--root", "/nowhere/at/all"], "rayad: cannot list /nowhere/at/all: there is no such folder"),
        (["--root", "/tmp", "--port", "1000000"], "rayad: --port must be between 0 and 65,535, not 1000000"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, said, root):
    words = [word.replace("/tmp", str(root)) for word in words]
    done = subprocess.run([sys.executable, "-m", "rayad.cli", "dashboard", *words], capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
