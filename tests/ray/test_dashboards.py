"""What the dashboards draw is there: every metric by name, every query of a panel at a real Prometheus.

That of training scrapes a head where a job emits every metric, that of serving a real `rayad serve` with its token.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_job
from ray.job_submission import JobSubmissionClient
from served import PATIENTS, TOKEN, png, serving

from rayad.dashboard.tools import prometheus_configuration
from rayad.on_ray.metrics import COUNTERS, GAUGES, HISTOGRAMS
from tests.conftest import missing

FOLDER = Path(__file__).parents[2] / "dashboards" / "grafana"
FILES = sorted(FOLDER.glob("*.json"))
RAYS_OWN = {
    *("ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_object_store_memory"),
    *("ray_serve_deployment_queued_queries", "ray_serve_replica_processing_queries"),
    *("ray_serve_deployment_replica_healthy", "ray_serve_deployment_replica_starts_total"),
    "ray_node_gpus_utilization",  # where there is a GPU; never seen
}
EMITTED = {
    *(f"ray_rayad_{name}_total" for name in COUNTERS),
    *(f"ray_rayad_{name}" for name in GAUGES),
    *(f"ray_rayad_{name}_bucket" for name in HISTOGRAMS),
}
EMIT = """
import time, ray
from rayad.on_ray.metrics import COUNTERS, GAUGES, count, show
ray.init()
while True:
    for emit, names in ((count, COUNTERS), (show, GAUGES)):
        for name, (_, tags) in names.items():
            emit(name, 1, **{tag: "data" for tag in tags})
    time.sleep(1)
"""
"""A job that emits every metric each second, until its cluster ends."""


def panels(file: Path) -> list[dict]:
    """Of a dashboard."""
    return json.loads(file.read_text())["panels"]


def queries(*files: str) -> list[str]:
    """Every query of every panel, of all dashboards or these."""
    wanted = [FOLDER / f"{name}.json" for name in files] or FILES
    return [target["expr"] for file in wanted for panel in panels(file) for target in panel["targets"]]


def names(query: str) -> set[str]:
    """The metrics in a query."""
    return set(re.findall(r"\bray_\w+", query))


@pytest.mark.parametrize("query", queries())
def test_a_query_names_metrics_that_are_there(query):
    assert names(query)
    assert names(query) <= EMITTED | RAYS_OWN


def test_every_metric_of_rayad_is_drawn():
    drawn = set().union(*map(names, queries()))
    assert drawn >= EMITTED


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_is_one_that_grafana_reads(file):
    board = json.loads(file.read_text())
    (source,) = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert board["uid"]
    assert board["schemaVersion"] >= 36
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["description"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_fit_beside_each_other(file):
    taken: set[tuple[int, int]] = set()
    for panel in panels(file):
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


head, logs = test_job.head, test_job.logs
TEMPORARY = Path(f"/tmp/rayad-{os.getpid()}")
"""The head's --temp-dir."""


@contextmanager
def scraping(configuration: dict, folder: Path) -> Iterator[str]:
    """The address of a Prometheus with this configuration."""
    (port,) = test_job.free_ports(1)
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    options = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'stored'}")
    listen = f"--web.listen-address=127.0.0.1:{port}"
    process = subprocess.Popen(["prometheus", *options, listen], stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def installed() -> None:
    if not shutil.which("prometheus"):
        missing("Prometheus is not here: apt-get install prometheus")


def answer(prometheus: str, query: str) -> list[dict]:
    """What Prometheus says to a query now; an HTTPError where it cannot be asked."""
    asked = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{asked}", timeout=10) as said:
        return json.load(said)["data"]["result"]


def all_answered(prometheus: str, wanted: list[str]) -> None:
    """Wait until every query has an answer with data."""
    until = time.monotonic() + 180
    while wanted:
        assert time.monotonic() < until, f"no data for {wanted}"
        time.sleep(2)
        try:
            wanted = [query for query in wanted if not with_data(answer(prometheus, query))]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{error}: {error.read().decode()}")
        except urllib.error.URLError:
            continue  # it does not listen yet


def with_data(rows: list[dict]) -> bool:
    """Is there a number? A share of nothing is none."""
    return any(row["value"][1] != "NaN" for row in rows)


@pytest.mark.long
def test_every_query_of_training_has_an_answer_with_data(installed, head, tmp_path):
    (tmp_path / "emit.py").write_text(EMIT)
    JobSubmissionClient(head[0]).submit_job(entrypoint=f"{sys.executable} {tmp_path / 'emit.py'}")
    discovery = TEMPORARY / "prom_metrics_service_discovery.json"
    with scraping(prometheus_configuration(str(discovery)), tmp_path) as prometheus:
        all_answered(prometheus, queries("training"))


@pytest.mark.long
def test_every_query_of_serving_has_an_answer_with_data(installed, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    image = png(PATIENTS, PATIENTS.exams()[0])
    stop = threading.Event()
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        job = {"job_name": "rayad", "authorization": {"credentials_file": str(tmp_path / "token")}}
        job |= {"static_configs": [{"targets": [server.url.removeprefix("http://")]}]}
        configuration = {"global": {"scrape_interval": "5s"}, "scrape_configs": [job]}

        def ask() -> None:
            while not stop.wait(0.5):
                server.score(image)
                server.score(b"no image")

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            with scraping(configuration, tmp_path) as prometheus:
                all_answered(prometheus, queries("serving"))
                (up,) = answer(prometheus, "up")
                assert up["value"][1] == "1"
        finally:
            stop.set()
            thread.join()


def test_prometheus_understands_the_file_in_the_repository():
    if not shutil.which("promtool"):
        missing("promtool is not here: apt-get install prometheus")
    done = subprocess.run(["promtool", "check", "config", FOLDER.parent / "prometheus.yml"], capture_output=True)
    assert done.returncode == 0, done.stderr
