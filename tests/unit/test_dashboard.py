"""What the page of `rayad dashboard` says of the files below its roots."""

import asyncio
import json
import os
import re
import socket
from datetime import UTC, datetime, timedelta
from glob import glob
from pathlib import Path

import pytest
import yaml
from aiohttp.test_utils import TestClient, TestServer

from rayad import storage
from rayad.dashboard import page
from rayad.dashboard.overview import Overview
from rayad.dashboard.reader import Reader
from rayad.dashboard.serve import REPORT, Site
from rayad.dashboard.tools import Ports, Tools, prometheus_configuration
from rayad.errors import OptionError, StorageError
from tests.conftest import is_free

LOST = {"when": "2026-11-20T10:00:00+00:00", "stage": "cae", "error": "worker 1: killed"}
SWEEP = {
    "name": "widths",
    "state": "running",
    "began": "2026-11-20T09:00:00+00:00",
    "updated": "2026-11-20T09:30:00+00:00",
    "corpus": "out/corpus",
    "objective": "validation loss",
    "space": {"width": "8 to 64"},
    "wanted": 12,
    "trials": {"whole": 5, "stopped": 2, "failed": 1},
    "best": {"value": 0.01234567, "settings": {"width": 32}},
}


def write(root: Path, name: str, said: dict) -> None:
    storage.write_json(str(root / name), said)


def detector(name: str, **origin) -> dict:
    """detector.json of an autoencoder."""
    return {
        "name": name,
        "score": "reconstruction",
        "model": {"name": "cae"},
        "density": None,
        "members": [],
        "aggregation": {"kind": "none", "size_mm": 0.0},
        "provenance": {"commit": "0123456789", "train_minutes": 2.25, **origin},
    }


def results(**pixel_auc: float) -> dict:
    """results.json of detectors and their pixel AUC of masses."""
    rows = [
        {"detector": name, "lesion": "mass", "pixel_auc": {"value": value, "low": value - 0.05, "high": 0.97}}
        for name, value in pixel_auc.items()
    ]
    return {"dataset": "phantom", "rows": rows, "pictures": {"panel": "AAAA"}}


def manifest(*reasons: str) -> dict:
    failures = [{"exam_id": f"e{i}", "url": f"e{i}.png", "reason": reason} for i, reason in enumerate(reasons)]
    return {"dataset": "phantom", "patches": 6240, "images": 52, "failures": failures, "excluded": []}


def text(overview: Overview) -> str:
    """The page's words, without its tags and style."""
    body = page.render(overview, ["out"], [page.Line("TensorBoard", "losses", "http://127.0.0.1:1")], "n")
    return " ".join(re.sub(r"<[^>]+>", " ", body.split("</style>")[1]).split())


def test_a_run_is_its_detectors_with_the_figures_of_its_report(tmp_path):
    write(tmp_path, "models/cae/detector.json", detector("cae"))
    write(tmp_path, "detectors/cae/detector.json", detector("cae"))
    write(tmp_path, "detectors/both/members/cae/detector.json", detector("cae"))
    write(tmp_path, "report/results.json", results(cae=0.875))
    (run,) = Reader([str(tmp_path)]).look().runs
    assert [found.url for found in run.detectors] == [str(tmp_path / "detectors/cae/detector.json")]
    assert run.reports == [str(tmp_path / "report/results.json")]
    said = text(Reader([str(tmp_path)]).look())
    assert "cae cae: reconstruction 0.88 0.82 to 0.97 2.2 just now 0123456" in said


def test_a_model_that_is_trained_is_shown_before_its_detector_is_there(tmp_path):
    write(tmp_path, "models/cae/detector.json", detector("cae"))
    (run,) = Reader([str(tmp_path)]).look().runs
    assert [found.name for found in run.detectors] == ["cae"]
    assert run.reports == []


def test_a_report_on_a_detector_that_lies_elsewhere_is_a_run_too(tmp_path):
    write(tmp_path, "results.json", results(cae=0.9, vqvae=0.8))
    (tmp_path / "index.html").write_text("page")
    (run,) = Reader([str(tmp_path)]).look().runs
    assert [found.name for found in run.detectors] == ["cae", "vqvae"]
    assert run.reports == [str(tmp_path / "index.html")]
    assert run.best("mass") == 0.9


def test_a_sweep_shows_its_progress_its_best_and_its_storage(tmp_path):
    write(tmp_path, "sweep/sweep.json", SWEEP)
    for file in ("optuna.db", "index.html"):
        (tmp_path / "sweep" / file).touch()
    overview = Reader([str(tmp_path)]).look()
    assert overview.sweeps[0].storage == str(tmp_path / "sweep/optuna.db")
    assert overview.sweeps[0].page == str(tmp_path / "sweep/index.html")
    said = text(overview)
    assert "8 of 12 trials" in said
    assert "the best so far 0.01235" in said
    assert "width=32" in said
    assert "1 of 8 trials of widths failed" in said


def test_a_sweep_without_a_trial_has_no_best(tmp_path):
    none = {"whole": 0, "stopped": 0, "failed": 0}
    write(tmp_path, "sweep.json", SWEEP | {"trials": none, "best": None})
    overview = Reader([str(tmp_path)]).look()
    assert "0 of 12 trials" in text(overview)
    assert overview.faults == []


@pytest.mark.parametrize("state", ["stopped", "failed", "done"])
def test_a_sweep_that_ended_is_not_shown_as_running(tmp_path, state):
    write(tmp_path, "sweep.json", SWEEP | {"state": state})
    said = text(Reader([str(tmp_path)]).look())
    assert "sweeps, 0 running" in said
    assert f"{state} 8 of 12 trials" in said


def test_images_that_failed_and_workers_that_were_lost_are_faults_each_once(tmp_path):
    write(tmp_path, "corpus/manifest.json", manifest("is cut off"))
    for kind in ("models", "detectors"):
        write(tmp_path, f"{kind}/cae/detector.json", detector("cae", faults=[LOST]))
    write(tmp_path, "models/vqvae/training-1/ray/faults/1-0.json", LOST | {"stage": "vqvae"})
    faults = [(fault.what, fault.when) for fault in Reader([str(tmp_path)]).look().faults]
    assert sorted(faults)[1:] == [
        ("learning cae: worker 1: killed", LOST["when"]),
        ("learning vqvae: worker 1: killed", LOST["when"]),
    ]
    assert faults[0][0] == "e0: is cut off"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a/detector.json", "{", "is not JSON"),
        ("a/detector.json", "{}", "detector.json is not what docs/formats.md says: KeyError 'provenance'"),
        ("a/results.json", '{"dataset": "x", "rows": 3}', "results.json is not what docs/formats.md says"),
        ("a/sweep.json", '{"state": "running"}', "sweep.json is not what docs/formats.md says"),
        ("a/manifest.json", "[]", "a JSON object is wanted, not a list"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_a_fault(tmp_path, name, content, said):
    storage.write_bytes(str(tmp_path / name), content.encode())
    overview = Reader([str(tmp_path)]).look()
    assert [fault.where for fault in overview.faults] == [f"{tmp_path.name}/a"]
    assert said in overview.faults[0].what
    assert "faults" in text(overview)


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    reader = Reader([str(tmp_path)])
    for minutes in (1.0, 2.0):
        write(tmp_path, "cae/detector.json", detector("cae", train_minutes=minutes))
        assert reader.look().runs[0].detectors[0].minutes == minutes


def test_a_root_may_be_any_url():
    storage.write_json("memory://dash/out/detectors/cae/detector.json", detector("cae"))
    storage.write_json("memory://dash/out/sweep.json", SWEEP)
    storage.write_bytes("memory://dash/out/optuna.db", b"")
    overview = Reader(["memory://dash/out"]).look()
    assert overview.runs[0].detectors[0].url == "memory://dash/out/detectors/cae/detector.json"
    assert overview.sweeps[0].storage == ""


def test_roots_of_one_name_keep_their_places_apart(tmp_path):
    for home in ("a", "b"):
        write(tmp_path, f"{home}/out/corpus/manifest.json", manifest())
    corpora = Reader([str(tmp_path / "a/out"), str(tmp_path / "b/out")]).look().corpora
    assert len({corpus.place for corpus in corpora}) == 2


def test_a_root_that_does_not_exist_is_named():
    with pytest.raises(StorageError, match="cannot list /nowhere/at/all: there is no such folder"):
        Reader(["/nowhere/at/all"]).look()


def test_what_a_file_says_is_text_on_the_page(tmp_path):
    write(tmp_path, "cae/detector.json", detector("<script>alert(1)</script>"))
    body = page.render(Reader([str(tmp_path)]).look(), ["<b>"], [], "n")
    assert "<script" not in body
    assert "&lt;script&gt;alert(1)" in body
    assert "<b>, " not in body


def ask(site: Site, path: str, **headers: str) -> tuple[int, str, dict]:
    """What the page's server answers."""

    async def asked() -> tuple[int, str, dict]:
        async with TestClient(TestServer(site.application, host="127.0.0.1")) as client:
            answer = await client.get(path, headers=headers, allow_redirects=False)
            return answer.status, await answer.text(), dict(answer.headers)

    return asyncio.run(asked())


@pytest.fixture
def site(tmp_path):
    write(tmp_path, "out/report/results.json", results(cae=0.9))
    (tmp_path / "out/report/index.html").write_text("<p>the report")
    (tmp_path / "out/report/notes.txt").write_text("private")
    (tmp_path / "out/secret.json").write_text("{}")
    roots = [str(tmp_path / "out")]
    return Site(roots, Reader(roots).look())


def test_the_page_leads_to_its_reports_and_to_nothing_else(site, tmp_path):
    status, body, headers = ask(site, "/")
    assert status == 200
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'nonce-")
    (link,) = set(re.findall(r'href="(/at/[^"]*index.html)"', body))
    assert ask(site, link)[:2] == (200, "<p>the report")
    report = link.rsplit("/", 1)[0]
    outside = f"/at/{page.key(str(tmp_path / 'out'))}/secret.json"
    for path in (f"{report}/notes.txt", f"{report}/..%2fsecret.json", f"{report}/gone.json", outside):
        assert ask(site, path)[0] == 404, path


def test_no_link_leads_out_of_the_roots(site, tmp_path):
    report = f"/at/{page.key(str(tmp_path / 'out/report'))}"
    write(tmp_path, "elsewhere/results.json", results(cae=0.8))
    (tmp_path / "elsewhere/index.html").write_text("secret")
    (tmp_path / "out/report/evil.json").symlink_to("/etc/passwd")
    (tmp_path / "out/report/good.json").symlink_to(tmp_path / "out/secret.json")
    os.mkfifo(tmp_path / "out/report/pipe.json")
    status, reason, _ = ask(site, f"{report}/evil.json")
    assert status == 404
    assert "it lies outside of the allowed folders, or a link leads there" in reason
    assert ask(site, f"{report}/good.json")[:2] == (200, "{}")
    assert ask(site, f"{report}/pipe.json")[0] == 404
    (tmp_path / "out/report/index.html").unlink()
    (tmp_path / "out/report").rename(tmp_path / "out/was")
    (tmp_path / "out/report").symlink_to(tmp_path / "elsewhere")
    assert ask(site, f"{report}/index.html")[0] == 404
    assert ask(site, f"{report}/results.json")[0] == 404


def test_a_link_that_leads_out_of_the_roots_is_a_fault_and_shows_nothing(tmp_path):
    write(tmp_path, "elsewhere/deep/results.json", results(hidden=0.8))
    write(tmp_path, "elsewhere/detector.json", detector("hidden"))
    (tmp_path / "elsewhere/optuna.db").touch()
    (tmp_path / "elsewhere/events.out.tfevents.1").touch()
    write(tmp_path, "out/sweep/sweep.json", SWEEP)
    links = ["all", "cae/detector.json", "sweep/optuna.db", "training/events.out.tfevents.1"]
    for link in links:
        (tmp_path / "out" / link).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / link).symlink_to(tmp_path / "elsewhere" / ("" if link == "all" else link.split("/")[1]))
    overview = Reader([str(tmp_path / "out")]).look()
    faults = {
        fault.where for fault in overview.faults if fault.what == "a link that leads out of the roots is not followed"
    }
    assert faults == {f"out/{link}" for link in links}
    assert (overview.runs, overview.events, overview.sweeps[0].storage) == ([], {}, "")
    both = Reader([str(tmp_path / "out"), str(tmp_path / "elsewhere")]).look()
    assert both.sweeps[0].storage == str(tmp_path / "out/sweep/optuna.db")
    assert [fault.what for fault in both.faults] == ["1 of 8 trials of widths failed"]


def test_a_name_from_elsewhere_that_means_this_machine_is_refused(site):
    assert ask(site, "/", Host="evil.example")[0] == 403
    assert ask(site, "/", Host="localhost:5000")[0] == 200


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OptionError, match=f"port {other.getsockname()[1]} of 127.0.0.1 cannot be had"):
            Ports(other.getsockname()[1]).take()


def test_the_tools_take_the_ports_behind_the_page():
    first = next(port for port in range(20_000, 30_000, 2) if is_free(port) and is_free(port + 1))
    ports = Ports(first)
    assert [ports.take(), ports.take()] == [first, first + 1]


def test_the_file_for_prometheus_is_what_the_command_tells_it():
    file = Path(__file__).parents[2] / "dashboards" / "prometheus.yml"
    wanted = prometheus_configuration("/tmp/ray/prom_metrics_service_discovery.json")
    assert yaml.safe_load(file.read_text()) == json.loads(json.dumps(wanted))


@pytest.mark.parametrize(
    ("back", "said"),
    [
        (timedelta(seconds=20), "just now"),
        (timedelta(seconds=90), "2 min ago"),
        (timedelta(hours=1), "1 h ago"),
        (timedelta(hours=30), "30 h ago"),
        (timedelta(days=3), "3 days ago"),
    ],
)
def test_how_long_ago(back, said):
    now = datetime(2026, 11, 26, tzinfo=UTC)
    assert page.ago(now - back, now) == said
    assert page.ago("never", now) == ""


ODD = [
    {"commit": 5},
    {"train_minutes": "long"},
    {"faults": [{"stage": "a", "error": "b", "when": 5}]},
    {"faults": [{"stage": "a", "error": "b", "when": [1]}, {"stage": "a", "error": "b", "when": "2020"}]},
    {"faults": [{"stage": "a", "error": "b", "when": "0001-01-01T00:00:00+23:00"}]},
    {"faults": [7]},
]


@pytest.mark.parametrize("origin", ODD)
def test_odd_values_of_a_file_do_not_end_the_page(tmp_path, origin):
    write(tmp_path, "detectors/odd/detector.json", detector("odd", **origin))
    write(tmp_path, "detectors/good/detector.json", detector("good"))
    found = Reader([str(tmp_path)]).look()
    assert len(found.faults) == 1
    assert "good" in text(found)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("name", ["a"]),
        ("began", 5),
        ("trials", {"whole": "1", "stopped": 0, "failed": 0}),
        ("best", {"value": 1.0, "settings": [1]}),
        ("space", "x"),
        ("wanted", None),
    ],
)
def test_odd_values_of_a_sweep_do_not_end_the_page(tmp_path, name, changed):
    write(tmp_path, "sweep/sweep.json", {**SWEEP, name: changed})
    write(tmp_path, "detectors/good/detector.json", detector("good"))
    found = Reader([str(tmp_path)]).look()
    assert len(found.faults) == 1
    assert "good" in text(found)


def test_event_files_in_folders_of_each_other_are_all_shown(tmp_path):
    tools = Tools(tmp_path / "tools", Ports(0), "")
    started = []

    async def start(*of) -> None:
        started.append(of)

    tools._start = start
    (tmp_path / "tools").mkdir()
    for folder in ("in/a/b", "in/a", "in/a/b/c", "in/d"):
        write(tmp_path, f"{folder}/events.out.tfevents.1", {})
        asyncio.run(tools._show_events(Reader([str(tmp_path / "in")]).look().events))
    shown = {os.path.realpath(file) for file in glob(f"{tmp_path}/tools/events/**/*tfevents*", recursive=True)}
    assert shown == {os.path.realpath(file) for file in glob(f"{tmp_path}/in/**/*tfevents*", recursive=True)}
    assert started


def test_a_reports_page_sees_nothing_else_that_is_served():
    assert "sandbox allow-scripts allow-downloads" in REPORT
    assert "allow-same-origin" not in REPORT
