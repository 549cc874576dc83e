"""Faults in every stage: what survives, and that the result is that of an undisturbed run.

A stage is a command, given as its users give it, on a cluster of a head that does no work and two nodes. The fault
comes while workers are at work. A command that ends with an error is given again, as its message says. RAYAD_FAULTS
names a file to which every case adds a line of JSON: whether it survived or was given again, and the seconds lost.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pytest
from faulty import Proxy
from safetensors.numpy import load, save

from rayad import storage
from rayad.patches.corpus import Corpus
from rayad.private import keep_private
from tests.conftest import missing

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SMALL = ("height=256", "width=192")
LIMIT_S = 400


@dataclass(frozen=True)
class Stage:
    """A command, by what one sees that it is at work, and what it leaves."""

    name: str
    workers: str
    """Pattern of what Ray calls the processes that do its work."""
    began: str
    """Pattern of the files that show that work is going on."""
    number: int
    """Of such files, from which on a fault comes in the middle."""
    more: tuple[str, ...] = ()
    """Options besides."""

    def command(self, made: str, out: str) -> list[str]:
        """Its options; `made` holds the results of the stages before it."""
        corpus, spn = ["--corpus", f"{made}/corpus"], ["--settings", "inputs=12", "replicas=12"]
        healthy = ["--dataset", "phantom", "--settings", "patients=240", "diseased=0.0", *SMALL]
        return [
            *{
                "ingest": ["ingest", *healthy, "--sampling.patches", "40", "--shard-patches", "120"],
                "train": ["train", *corpus, *MODEL, "--schedule.epochs", "12", "--schedule.patience", "12"],
                "fit-density": ["fit-density", *corpus, "--detector", f"{made}/cae", *spn, *LONG_EM],
                "sweep": ["sweep", *corpus, "--detector", f"{made}/cae", "--space", "inputs=6..20", *SEARCH],
                "evaluate": ["evaluate", "--detector", f"{made}/spn", *LABELLED, "--split", "development"],
            }[self.name],
            *self.more,
            *("--out", out),
        ]

    def result(self, out: str) -> Any:
        """What must be equal; of a sweep what does not depend on which trials ran beside each other."""
        match self.name:
            case "ingest":
                return Corpus.open(out).manifest["content"], Corpus.open(out).index().to_csv()
            case "train" | "fit-density":
                return load(storage.read_bytes(_tensors(out, "model" if self.name == "train" else "density")))
            case "sweep":
                found = storage.read_json(f"{out}/sweep.json")
                first = next(row for row in found["rows"] if row["how"] == "whole" and row["settings"] == found["base"])
                return {"trials": float(len(found["rows"])), "base": round(first["value"], 4)}
            case _:
                rows = storage.read_json(f"{out}/results.json")["rows"]
                return {f"{row['detector']}-{row['lesion']}": row["pixel_auc"]["value"] for row in rows}


MODEL = ("--settings", "width=4", "latents=8", "--workers.number", "2")
LONG_EM = ("--em.epochs", "120", "--em.patience", "120", "--workers.number", "2")
LEARN = ("--settings", "inputs=12", "replicas=6", "--em.epochs", "60", "--em.patience", "60")
SEARCH = (*LEARN, "--search.grace", "0", "--search.trials", "8", "--search.seeds", "1")
LABELLED = ("--dataset", "phantom", "--settings", "patients=80", *SMALL)
STAGES = (
    Stage("ingest", "Map", r"parts/shard-\d+\.json", 4),
    Stage("train", "RayTrainWorker", "checkpoint.safetensors", 1),
    Stage("fit-density", "RayTrainWorker", "learning/checkpoint.safetensors", 1),
    Stage("sweep", "ImplicitFunc|_trial", r"sweep\.json", 1),
    Stage("evaluate", "Map", r"scores/.*\.npz", 3),
)
BY_NAME = {stage.name: stage for stage in STAGES}


class Nodes:
    """A head without CPUs and two nodes of three; a node that dies is seen to be dead within seconds.

    The two kill workers when this share of the machine's memory is used.
    """

    def __init__(self, cpus: int = 3, memory_share: float = 0.95) -> None:
        from ray.cluster_utils import Cluster

        health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}
        health |= {"health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}
        self.size, self.cpus = {"object_store_memory": 100 * 2**20}, cpus
        head = {**self.size, "num_cpus": 0, "include_dashboard": False, "_system_config": health}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        with patch.dict(os.environ, RAY_memory_usage_threshold=str(memory_share)):
            self.nodes = [self._node() for _ in range(2)]

    def kill_one(self, instead: bool = True) -> None:
        """SIGKILL a node that works, with its workers; another may come in its place."""
        busy = max(self.nodes, key=lambda node: len(_workers(".", _raylet(node))))
        self.nodes.remove(busy)
        self.cluster.remove_node(busy, allow_graceful=False)
        if instead:
            self.nodes.append(self._node())

    def _node(self) -> Any:
        return self.cluster.add_node(num_cpus=self.cpus, **self.size)


def _raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def _workers(pattern: str, of: psutil.Process | None = None) -> list[psutil.Process]:
    """Workers below a process (this one) that do this work now."""
    found = []
    for process in (of or psutil.Process()).children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if name.startswith("ray::") and "IDLE" not in name and re.search(pattern, name):
            found.append(process)
    return found


@dataclass
class Given:
    """A command that was given, and what it said."""

    process: subprocess.Popen[str]
    began: float

    @staticmethod
    def to(nodes: Nodes, command: Sequence[str]) -> "Given":
        """On this cluster, in a process of its own."""
        words = [sys.executable, "-m", "rayad.cli", *command, "--address", nodes.cluster.address]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**os.environ, "RAY_ADDRESS": nodes.cluster.address}
        return Given(subprocess.Popen(words, env=environment, start_new_session=True, **pipes), time.monotonic())

    def ended(self) -> tuple[int, str, float]:
        """Exit code, what it said, and the seconds it took."""
        said, _ = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, said, time.monotonic() - self.began


def _at_work(stage: Stage, out: str, given: Given) -> psutil.Process:
    """Wait until the stage is in the middle of its work; a worker that does it."""
    while given.process.poll() is None:
        files = storage.listing(out) if storage.exists(out) else []
        if len([file for file in files if re.search(stage.began, file)]) >= stage.number:
            if stage.name == "sweep" and len(storage.read_json(f"{out}/sweep.json")["rows"]) < 2:
                continue
            if found := _workers(stage.workers):
                return found[0]
        time.sleep(0.02)
    pytest.fail(f"{stage.name} was not caught at work: {given.process.communicate()[0]}")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    keep_private()
    import ray

    ray.shutdown()
    made = Nodes()
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def made(nodes: Nodes, tmp_path_factory) -> str:
    """What the stages work on: a corpus, a model, a density that is calibrated."""
    root = str(tmp_path_factory.mktemp("made"))
    for command in (
        BY_NAME["ingest"].command(root, f"{root}/corpus"),
        ["train", "--corpus", f"{root}/corpus", "--out", f"{root}/cae", *MODEL, "--schedule.epochs", "2"],
        [
            *("fit-density", "--corpus", f"{root}/corpus", "--detector", f"{root}/cae", "--out", f"{root}/spn"),
            *("--settings", "inputs=12", "replicas=12", "--em.epochs", "3", "--workers.number", "1"),
        ],
        ["calibrate", "--detector", f"{root}/spn", *LABELLED, "--scores", f"{root}/scores"],
    ):
        code, said, _ = Given.to(nodes, command).ended()
        assert code == 0, said
    return root


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, made: str, tmp_path_factory) -> Callable[[Stage], tuple[Any, float]]:
    """What a stage leaves when nothing happens, and the seconds it takes; each is run once."""
    known: dict[Stage, tuple[Any, float]] = {}

    def result(stage: Stage) -> tuple[Any, float]:
        if stage not in known:
            out = str(tmp_path_factory.mktemp(f"undisturbed-{stage.name}"))
            code, said, seconds = Given.to(nodes, stage.command(made, out)).ended()
            assert code == 0, said
            known[stage] = stage.result(out), seconds
        return known[stage]

    return result


Act = Callable[[psutil.Process, Given], Any]


@dataclass
class Case:
    """A stage that is disturbed."""

    stage: Stage
    nodes: Nodes
    made: str
    out: str
    undisturbed: Callable[[Stage], tuple[Any, float]]

    def disturb(
        self, fault: str, act: Callable[[psutil.Process, Given], Any], mend: Callable[[], Any] = lambda: None
    ) -> str:
        """Give the command, act when it is at work, give it again if it failed; the result must be the undisturbed one.

        Args:
            act: takes a worker that is at work, and the command.
            mend: what one does before the command is given again.

        Returns:
            What the command said when it failed; None if it survived.
        """
        expected, usual = self.undisturbed(self.stage)
        command = self.stage.command(self.made, self.out)
        given = Given.to(self.nodes, command)
        act(_at_work(self.stage, self.out, given), given)
        code, said, seconds = given.ended()
        failed = said if code else None
        if code:
            mend()
            code, said, more = Given.to(self.nodes, command).ended()
            seconds += more
        assert code == 0, f"{failed}\n{said}"
        _assert_equal(self.stage.result(self.out), expected)
        row = {"stage": self.stage.name, "fault": fault, "again": failed is not None, "seconds": round(seconds, 1)}
        _keep(row | {"usual_seconds": round(usual, 1), "lost_seconds": round(seconds - usual, 1), "equal": True})
        return failed


def _assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    else:
        assert found == expected


def _keep(row: dict[str, Any]) -> None:
    if where := os.environ.get("RAYAD_FAULTS"):
        with open(where, "a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def case(request, nodes: Nodes, made: str, undisturbed, tmp_path: Path) -> Case:
    return Case(BY_NAME[request.param], nodes, made, str(tmp_path / "out"), undisturbed)


every_stage = pytest.mark.parametrize("case", BY_NAME, indirect=True)


@every_stage
def test_a_worker_is_killed(case: Case) -> None:
    failed = case.disturb("worker killed", lambda worker, _: worker.kill())
    assert failed is None


@every_stage
def test_a_node_is_killed(case: Case) -> None:
    failed = case.disturb("node killed", lambda *_: case.nodes.kill_one())
    assert failed is None


@every_stage
def test_the_driver_is_killed(case: Case) -> None:
    case.disturb("driver killed", lambda _, given: given.process.kill())


@every_stage
def test_the_driver_is_told_to_stop(case: Case) -> None:
    """As `ray job stop` and a machine that is taken away do."""
    failed = case.disturb("SIGTERM", lambda _, given: given.process.send_signal(signal.SIGTERM))
    assert failed is not None
    assert "rayad: stopped; the same command goes on where it stopped" in failed
    assert "Traceback" not in failed


@every_stage
def test_the_disk_is_full(case: Case, tmp_path: Path) -> None:
    """On a disk of its own; the message names the file, and with room again the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], check=False).returncode
    ):
        missing("a disk of its own cannot be mounted: needs root")
    try:
        case.out, filler = str(disk / "out"), disk / "filler"

        def fill(*_: Any) -> None:
            with open(filler, "wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        return

        failed = case.disturb("disk full", fill, filler.unlink)
        assert failed is not None
        assert "No space left on device" in failed
        assert "Traceback" not in failed
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture
def on_s3(s3, nodes: Nodes, made: str, monkeypatch) -> Iterator[tuple[Nodes, str, Proxy]]:
    """A cluster whose workers reach S3 through a proxy, a prefix there with what the stages work on, and the proxy."""
    proxy = Proxy(s3.endpoint, lambda *_: "pass")
    for file in storage.listing(made):
        storage.write_bytes(f"s3://{s3.bucket}/made{file.removeprefix(made)}", storage.read_bytes(file))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    own = Nodes()
    yield own, f"s3://{s3.bucket}", proxy
    own.cluster.shutdown()
    proxy.close()


@every_stage
def test_the_storage_is_away_for_a_minute(case: Case, on_s3) -> None:
    case.nodes, root, proxy = on_s3
    case.made, case.out = f"{root}/made", f"{root}/out-{case.stage.name}"
    failed = case.disturb("storage away for a minute", lambda *_: proxy.leave(60))
    assert failed is None


def _killed_for_memory(nodes: Nodes, workers: str) -> bool:
    """Whether the nodes' logs say that one of these workers was killed since the memory was used up."""
    logs = Path(nodes.cluster.head_node.get_logs_dir_path()).glob("raylet*.out")
    said = "".join(log.read_text(errors="replace") for log in logs)
    return re.search(rf"^Selected to kill: .*task name=[^,]*(?:{workers})", said, re.MULTILINE) is not None


@every_stage
def test_the_memory_is_full(case: Case) -> None:
    """Ray kills workers of a node whose memory is used up to a limit, here one that a process beside them reaches."""
    memory = psutil.virtual_memory
    limit, total = memory().total - memory().available + 6e9, memory().total
    own = Nodes(memory_share=limit / total)
    try:
        case.nodes = own

        ballast = [np.ones(int(2.5e9 / 8))]  # beforehand: to touch so much takes as long as some stages

        def take(_: psutil.Process, given: Given) -> None:
            until = time.monotonic() + 60
            while given.process.poll() is None and not _killed_for_memory(own, case.stage.workers):
                assert time.monotonic() < until
                if (short := limit + 1e8 - total + memory().available) > 0:
                    ballast.append(np.ones(int(short / 8)))  # touched
                time.sleep(0.1)
            ballast.clear()

        failed = case.disturb("out of memory", take)
        if failed:
            assert "rayad: training on Ray failed: the memory of a node was used up" in failed
            assert "Traceback" not in failed
        assert _killed_for_memory(own, case.stage.workers)
    finally:
        own.cluster.shutdown()


@pytest.mark.parametrize("case", ["train"], indirect=True)
def test_training_goes_on_with_fewer_workers_where_a_node_is_lost_for_good(case: Case, tmp_path: Path) -> None:
    """Two nodes of one CPU. The batches are the same, so the model is: in float64, since one worker adds up what two
    did in another order."""
    case.stage = replace(case.stage, more=("--schedule.precision", "float64", "--workers.least", "1"))
    case.undisturbed(case.stage)
    case.nodes = own = Nodes(cpus=1)
    try:
        failed = case.disturb("node lost for good, elastic", lambda *_: own.kill_one(instead=False))
        assert failed is None
    finally:
        own.cluster.shutdown()


def _tensors(url: str, kind: str) -> str:
    """The file of a detector's model or density."""
    return f"{url}/{kind}-{storage.read_json(f'{url}/detector.json')['sha256'][kind][:16]}.safetensors"


def _spoilt(url: str, to: str) -> str:
    """A copy of a detector with one weight that is no number, and the hash that belongs to it."""
    import hashlib

    shutil.copytree(url, to)
    tensors = load(storage.read_bytes(_tensors(to, "model")))
    tensors["encoder.head.bias"][0] = np.nan
    data = save(tensors)
    said = storage.read_json(f"{to}/detector.json")
    said["sha256"]["model"] = hashlib.sha256(data).hexdigest()
    storage.write_bytes(f"{to}/model-{said['sha256']['model'][:16]}.safetensors", data)
    storage.write_json(f"{to}/detector.json", said)
    return to


def test_what_is_no_number_ends_a_stage_with_its_reason(nodes: Nodes, made: str, tmp_path: Path) -> None:
    """Training, EM and evaluation say what is not finite and leave no detector; of a sweep only the trial is lost."""
    spoilt, out = _spoilt(f"{made}/spn", str(tmp_path / "spoilt")), str(tmp_path / "out")
    train = BY_NAME["train"].command(made, out)
    at = train.index("latents=8")
    train[at : at + 1] = ["optimizer=sgd", "learning_rate=1000"]
    for name, command, reason in (
        ("train", train, r"loss .* not finite in epoch 1, step \d+"),
        (
            "fit-density",
            ["fit-density", "--corpus", f"{made}/corpus", "--detector", spoilt, "--out", out],
            "not finite",
        ),
        ("evaluate", ["evaluate", "--detector", spoilt, *LABELLED, "--out", out], "not finite"),
    ):
        code, said, seconds = Given.to(nodes, command).ended()
        assert code == 1
        assert re.search(reason, said.splitlines()[-1]), said
        assert not storage.exists(f"{out}/detector.json")
        _keep({"stage": name, "fault": "not a number", "again": None, "seconds": round(seconds, 1), "equal": None})
    out = str(tmp_path / "sweep")
    space = ["--space", "learning_rate=0.001,1000", "--settings", "width=4", "latents=4"]
    few = ["--schedule.epochs", "1", "--search.trials", "6", "--search.seeds", "1"]
    command = ["sweep", "--corpus", f"{made}/corpus", "--model", "bvae", *space, *few, "--out", out]
    code, said, seconds = Given.to(nodes, command).ended()
    assert code == 0, said
    found = storage.read_json(f"{out}/sweep.json")
    assert found["trials"]["failed"] > 0
    assert found["best"]["settings"]["learning_rate"] == 0.001
    assert {"not finite" in row["error"] for row in found["rows"] if row["how"] == "failed"} == {True}
    _keep({"stage": "sweep", "fault": "not a number", "again": False, "seconds": round(seconds, 1), "equal": None})
