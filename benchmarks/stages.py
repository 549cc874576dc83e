"""Every stage on two nodes and an object store: what the driver, the workers and Ray's object stores hold meanwhile.

    for n in 100 1000 10000; do python benchmarks/stages.py --out s3://bucket/stages --images $n; done

Sets of so many small phantoms, PNG files with a table of labels, are inspected, ingested, learned from, calibrated on,
judged and drawn, each stage by its command, on a Ray of three nodes: a head that does no work, and two that do.
Twice a second the private memory of the driver and of every worker is looked at, the CPU time of each node's processes,
and what its object store holds and has spilled. Rows of sizes that are not measured now stay in the results.
"""

import json
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tyro
from watch import looking, private_bytes, store_bytes

from rayad import provenance, storage
from rayad.datasets import folder, phantom
from rayad.private import keep_private

RESULTS = Path(__file__).parent / "results" / "stages.json"
STORE = 80_000_000
"""Bytes of the object store of a node, about the least that Ray takes."""
HEIGHT, WIDTH = 128, 96
"""Of a phantom, px of 0.4 mm."""


@dataclass(frozen=True)
class Options:
    """What is done."""

    out: str
    """Folder or URL of images and results."""
    images: tuple[int, ...] = (100,)
    cpus: int = 3
    """Logical CPUs of each node."""


@dataclass
class Watch:
    """The most that was seen, in bytes, and the CPU seconds of each node's processes."""

    nodes: dict[str, psutil.Process]
    """Name -> its raylet."""
    session: Path
    """Folder of Ray's files."""
    driver: int = 0
    worker: int = 0
    """Of the largest."""
    store: int = 0
    """Of the object stores of all nodes."""
    spilled: int = 0
    seconds: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    """Node -> process -> CPU seconds since the watch began."""
    before: dict[int, float] = field(default_factory=dict)

    def look(self, first: bool = False) -> None:
        """Once."""
        self.driver = max(self.driver, private_bytes(psutil.Process()))
        for name, raylet in self.nodes.items():
            for process in raylet.children(recursive=True):
                with suppress(psutil.Error):  # it ended
                    times = process.cpu_times()
                    if first:
                        self.before[process.pid] = times.user + times.system
                    self.seconds[name][process.pid] = times.user + times.system - self.before.get(process.pid, 0.0)
                    if process.name().startswith("ray::"):
                        self.worker = max(self.worker, private_bytes(process))
        self.store = max(self.store, store_bytes())
        spilled = [file for file in self.session.rglob("ray_spilled_objects*/*") if file.is_file()]
        self.spilled = max(self.spilled, sum(file.stat().st_size for file in spilled))


def write_images(url: str, images: int) -> None:
    """So many phantoms, of which a tenth of the patients have a lesion, as PNG files with labels.csv."""
    if not storage.exists(storage.join(url, folder.LABELS)):
        dataset = phantom.Dataset(patients=images // 2, diseased=0.1, height=HEIGHT, width=WIDTH)
        folder.export(dataset, dataset.exams(), url)


def commands(url: str, images: str) -> list[list[str]]:
    """Every stage, as a user gives it."""
    data = ["--dataset", "folder", "--source", images, "--spacing-mm", "0.4"]
    corpus, cae, spn = (storage.join(url, name) for name in ("corpus", "cae", "spn"))
    tiny = ["--settings", "width=4", "latents=8"]
    return [
        ["inspect", *data, "--out", f"{url}/page"],
        ["ingest", *data, "--out", corpus, "--sampling.patches", "20"],
        ["train", "--corpus", corpus, "--out", cae, "--schedule.epochs", "1", *tiny],
        [*("fit-density", "--detector", cae, "--corpus", corpus, "--out", spn, "--em.epochs", "2"), "--settings",
         "inputs=3", "replicas=3"],
        ["calibrate", "--detector", spn, *data, "--scores", f"{url}/scores"],
        ["evaluate", "--detector", spn, *data, "--out", f"{url}/report"],
        ["heatmap", "--detector", spn, "--images", f"{corpus}/exams.parquet", "--out", f"{url}/maps", "--no-picture"],
    ]  # fmt: skip


def measured(options: Options, images: int, nodes: dict[str, psutil.Process], session: str) -> Iterator[dict[str, Any]]:
    """A row a stage."""
    from rayad import cli

    root = storage.join(storage.absolute(options.out), str(images))
    write_images(storage.join(root, "images"), images)
    for command in commands(root, storage.join(root, "images")):
        began, watch = time.perf_counter(), Watch(nodes, Path(session))
        watch.look(first=True)
        with looking(watch.look):
            code = cli.run(command)
        yield {
            "images": images,
            "stage": command[0],
            "exit_code": code,
            "seconds": round(time.perf_counter() - began, 1),
            "driver_MB": watch.driver // 10**6,
            "worker_MB": watch.worker // 10**6,
            "cpu_seconds": {name: round(sum(seconds.values()), 1) for name, seconds in watch.seconds.items()},
            "store_MB": round(watch.store / 1e6, 1),
            "spilled_MB": round(watch.spilled / 1e6, 1),
        }


def main(options: Options) -> None:
    """Measure, print, keep."""
    keep_private()
    with tempfile.TemporaryDirectory(prefix="rayad-") as session:
        os.environ["RAY_TMPDIR"] = session
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        added = [cluster.add_node(num_cpus=options.cpus, object_store_memory=STORE) for _ in range(2)]
        nodes = {
            f"node {n}": psutil.Process(node.all_processes["raylet"][0].process.pid) for n, node in enumerate(added)
        }
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        rows = [row for row in json.loads(RESULTS.read_text())["rows"] if row["images"] not in options.images]
        try:
            for images in options.images:
                for row in measured(options, images, nodes, session):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    ordered = sorted(rows, key=lambda row: row["images"])
                    RESULTS.write_text(json.dumps({"rows": ordered, "machine": provenance.machine()}, indent=2) + "\n")
        finally:
            ray.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    main(tyro.cli(Options))
