"""What HTTP costs: `rayad serve` under load beside the same scoring in plain processes.

    python benchmarks/serving.py --detector demo/detectors/cae-spn --images mini-mias/*.png --spacing-mm 0.2

Everything is on one machine, the client too. `processes` loops over the images in as many processes as there are cores,
one thread each, with no server at all; `served` keeps so many requests open and waits for nothing else. Latencies are
those that the client sees. `--flat N` asks N times and tells the memory of all the service's processes.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import torch
import tyro

from rayad import provenance
from rayad.heatmaps.answers import DetectorName
from rayad.heatmaps.images import HeatmapRequest, decoded
from rayad.heatmaps.judgement import judge
from rayad.imaging.picture import step_px
from rayad.scoring import bundle

RESULTS = Path(__file__).parent / "results" / "serving.json"


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    detector: str
    images: tuple[str, ...]
    spacing_mm: float = 0.0
    view: str = "MLO"
    step_mm: float = 3.2
    clients: tuple[int, ...] = (1, 8, 64)
    requests: int = 200
    """Of each number of clients."""
    rounds: int = 2
    pictures: int = 2
    """Replicas that decode."""
    flat: int = 0
    """Requests over which memory is watched."""
    label: str = ""
    """Of the figures in the results' file."""


def loop(options: Options, files: Sequence[str], seconds: float) -> int:
    """Score images for so long in this process, from the file to the judgement; how many."""
    torch.set_num_threads(1)
    detector, request = bundle.load(options.detector), HeatmapRequest(options.spacing_mm, options.view)
    data = [Path(file).read_bytes() for file in files]
    name = DetectorName(name=detector.name, sha256=bundle.sha256(options.detector))
    ended, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        source = decoded(data[ended % len(data)], "image", detector.preprocessing.channels, request)
        prepared = detector.preprocessing.prepare(source)
        found = detector.heatmap(prepared, step_px(detector.preprocessing, options.step_mm))
        assert detector.calibration is not None
        judge(prepared, found, detector.calibration).answer(name, {}).model_dump_json()
        ended += 1
    return ended


def in_processes(options: Options, number: int, seconds: float = 20.0) -> float:
    """Images a second of so many processes at once."""
    with ProcessPoolExecutor(number, mp_context=get_context("spawn")) as pool:
        list(pool.map(loop, [options] * number, [options.images[:1]] * number, [0.5] * number))  # imports are over
        return sum(pool.map(loop, [options] * number, [options.images] * number, [seconds] * number)) / seconds


class Server:
    """`rayad serve` with these detectors, until it is left."""

    def __init__(self, options: Options) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self.out = f"http://127.0.0.1:{port}", tempfile.mkdtemp(prefix="rayad-serving-")
        self.log, folder = Path(self.out, "log"), os.path.dirname(os.path.abspath(options.images[0]))
        command = [sys.executable, "-m", "rayad.cli", "serve", "--detector", options.detector]
        command += ["--listening.port", str(port), "--replicas.pictures", str(options.pictures)]
        command += ["--replicas.queue", "1000", "--read", f"file://{folder}/", "--write", f"file://{self.out}/"]
        with self.log.open("w") as log:
            self.process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    async def __aenter__(self) -> "Server":
        until = time.monotonic() + 240
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < until and self.process.poll() is None:
                try:
                    async with session.get(f"{self.url}/v1/ready") as answer:
                        if answer.status == 200:
                            return self
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(1)
        raise SystemExit(f"the server did not start:\n{self.log.read_text()}")

    async def __aexit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def memory(self) -> dict[str, float]:
        """MB of its own of each kind of process."""
        return self._of_each(lambda process: process.memory_full_info().uss / 1e6)

    def cpu(self) -> dict[str, float]:
        """Milliseconds of CPU that each kind of process has taken."""
        return self._of_each(lambda process: 1e3 * sum(process.cpu_times()[:2]))

    def _of_each(self, figure: Callable[[psutil.Process], float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for of in [self.process, *self.process.children(recursive=True)]:
            try:
                words = of.cmdline()
                title = words[0].split(":")[-1] if words and words[0].startswith("ray::") else of.name()
                name = title.split(".")[0]  # Ray adds the method that runs
                found[name] = found.get(name, 0) + figure(of)
            except psutil.Error:
                continue
        return found


async def under_load(server: Server, options: Options, clients: int, number: int) -> dict[str, float]:
    """So many requests by so many clients that ask without a pause."""
    data = [Path(file).read_bytes() for file in options.images]
    query = {"spacing_mm": options.spacing_mm, "view": options.view, "step_mm": options.step_mm}
    left, took, inside = iter(range(number)), [], []
    order = random.Random(0).choices(data, k=number)

    async def client(session: aiohttp.ClientSession) -> None:
        for which in left:
            began = time.perf_counter()
            async with session.post(f"{server.url}/v1/score", data=order[which], params=query) as answer:
                said = await answer.json()
                assert answer.status == 200, said
            took.append(time.perf_counter() - began)
            inside.append(said["seconds"])

    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        rate = number / (time.perf_counter() - began)
    p50, p95, p99 = np.percentile(took, (50, 95, 99))
    parts = {name: float(np.median([of[name] for of in inside])) for name in inside[0]}
    return {"images_per_s": rate, "p50": p50, "p95": p95, "p99": p99} | parts


async def empty(server: Server, number: int = 200) -> float:
    """Median seconds of a request that asks for nothing: what proxy, guard and framework cost."""
    took = []
    async with aiohttp.ClientSession() as session:
        for _ in range(number):
            began = time.perf_counter()
            async with session.get(f"{server.url}/v1/health") as answer:
                await answer.read()
            took.append(time.perf_counter() - began)
    return float(np.median(took))


async def batch(server: Server, options: Options) -> float:
    """Images a second of a batch that writes JSON, its start included."""
    urls = [f"file://{os.path.abspath(file)}" for file in options.images]
    wanted: dict[str, Any] = {"urls": urls, "out": f"file://{server.out}/batch", "results": ["json"]}
    wanted |= {"spacing_mm": options.spacing_mm, "view": options.view, "step_mm": options.step_mm}
    began = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{server.url}/v1/batches", json=wanted) as answer:
            place = answer.headers["location"]
        while True:
            async with session.get(server.url + place) as answer:
                said = await answer.json()
            if said["state"] != "running":
                assert (said["state"], said["failed"]) == ("done", 0), said
                return len(urls) / (time.perf_counter() - began)
            await asyncio.sleep(0.2)


async def flat(server: Server, options: Options) -> list[dict[str, Any]]:
    """Memory while requests go on, ten times."""
    found = [{"requests": 0, **server.memory()}]
    for part in range(1, 11):
        await under_load(server, options, 8, options.flat // 10)
        found.append({"requests": part * options.flat // 10, **server.memory()})
        print(json.dumps({k: round(v) for k, v in found[-1].items()}), flush=True)
    return found


async def measured(options: Options) -> dict[str, Any]:
    """All of it, in turn."""
    found: dict[str, list[Any]] = {}
    cores = os.cpu_count() or 1
    for _ in range(options.rounds):
        found.setdefault("1 process", []).append({"images_per_s": in_processes(options, 1)})
        found.setdefault(f"{cores} processes", []).append({"images_per_s": in_processes(options, cores)})
        async with Server(options) as server:
            await under_load(server, options, 8, 40)  # every replica has its detector
            found.setdefault("empty request", []).append({"seconds": await empty(server)})
            for clients in options.clients:
                number = options.requests if clients > 1 else options.requests // 4
                before = server.cpu()
                said = await under_load(server, options, clients, number)
                took = {name: (ms - before.get(name, 0)) / number for name, ms in server.cpu().items()}
                found.setdefault(f"{clients} clients", []).append(said)
                found.setdefault(f"{clients} clients, CPU ms an image", []).append(took)
                print(clients, said, flush=True)
            found.setdefault("batch", []).append({"images_per_s": await batch(server, options)})
    rows = {
        name: {k: float(np.median([of.get(k, 0) for of in rounds])) for k in rounds[0]}
        for name, rounds in found.items()
    }
    most = max(row["images_per_s"] for name, row in rows.items() if name.endswith("clients"))
    rows["of processes"] = {"served": most / rows[f"{cores} processes"]["images_per_s"]}
    rows["of processes"]["batch"] = rows["batch"]["images_per_s"] / rows["1 process"]["images_per_s"]
    return rows


async def watched(options: Options) -> list[dict[str, Any]]:
    """Memory alone."""
    async with Server(options) as server:
        await under_load(server, options, 8, 200)
        return await flat(server, options)


def main(options: Options) -> None:
    """Measure, print, keep."""
    rows: Any = asyncio.run(watched(options)) if options.flat else asyncio.run(measured(options))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": provenance.machine(), "rows": {}}
    label = options.label or ("memory" if options.flat else "load")
    known["rows"][label] = rows
    known.setdefault("commits", {})[label] = provenance.commit()
    RESULTS.write_text(json.dumps(known, indent=2) + "\n")
    for name, row in rows.items() if isinstance(rows, dict) else enumerate(rows):
        print(name, json.dumps(row))


if __name__ == "__main__":
    main(tyro.cli(Options))
