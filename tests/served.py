"""`rayad serve` as its users meet it, for tests: a process of its own on loopback, and small detectors."""

import io
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
from dicoms import complete
from PIL import Image
from untrained import parts

from rayad.datasets import phantom
from rayad.heatmaps.images import HeatmapRequest, decoded
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import step_px
from rayad.leftovers import MARK
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Detector, score_named

TOKEN = "a-token-of-these-tests-alone"
ME = {"authorization": f"Bearer {TOKEN}"}
OTHER = {"authorization": "Bearer a-token-of-another-caller"}
PATIENTS = phantom.Dataset(patients=6, height=256, width=192, spacing_mm=0.8)


def made(seed: int, score: str = "likelihood") -> Detector:
    """A detector that has learned nothing, calibrated on healthy phantoms."""
    one = Detector("cae-spn", score_named(score, *parts(seed)), Preprocessing(spacing_mm=0.8, intensity="relative"))
    healthy = phantom.Dataset(patients=4, diseased=0.0, height=256, width=192, spacing_mm=0.8)
    grids: dict[str, list[np.ndarray]] = {}
    for exam in healthy.exams():
        prepared = one.preprocessing.prepare(decoded(png(healthy, exam), "x", 1, HeatmapRequest(0.8, exam.view)))
        grids.setdefault(exam.patient_id, []).append(one.heatmap(prepared, step_px(one.preprocessing, 3.2)).scores)
    return one.calibrated(calibrate(grids))


def png(data: phantom.Dataset, exam: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((data.pixels(exam) * 65535).astype(np.uint16)).save(buffer, "png")
    return buffer.getvalue()


def dicom(exam: Any, **attributes: Any) -> bytes:
    """The same image as a complete DICOM mammogram."""
    dataset = complete((PATIENTS.pixels(exam) * 4095).astype(np.uint16), PixelSpacing=[0.8, 0.8], **attributes)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@dataclass
class Served:
    """A server that runs, and what it serves."""

    url: str
    process: psutil.Popen
    folder: Path
    detectors: dict[str, Detector]

    def score(
        self, data: Any, accept: str = "application/json", who: dict[str, str] = ME, **asked: Any
    ) -> requests.Response:
        query = {"spacing_mm": 0.8, "view": "MLO", **asked}
        headers = who | {"accept": accept}
        return requests.post(f"{self.url}/v1/score", data=data, params=query, headers=headers, timeout=120)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=ME, timeout=60)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def says(self, text: str, seconds: float = 120) -> None:
        """Wait until it prints this."""
        until = time.monotonic() + seconds
        while text not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def serving(folder: Path, *more: str, killed: bool = False) -> Iterator[Served]:
    """`rayad serve` with the detectors spn and plain, what is below `folder`/in to read and `folder`/out to write.

    Args:
        more: further options.
        killed: end it by SIGKILL.
    """
    port = free_port()
    detectors = {"spn": made(0), "plain": made(1, "reconstruction")}
    for name, detector in detectors.items():
        bundle.save(replace(detector, name=name), str(folder / f"{name}-1"))
    (folder / "spn").symlink_to(folder / "spn-1")
    for name in ("in", "out"):
        (folder / name).mkdir()
    command = [sys.executable, "-m", "rayad.cli", "serve", "--detector", str(folder / "spn"), f"plain={folder}/plain-1"]
    command += ["--read", f"file://{folder}/in/", "--write", f"file://{folder}/out/", "--state", str(folder / "state")]
    command += ["--audit", str(folder / "audit"), "--listening.port", str(port), "--limits.max-body-mb", "5"]
    command += ["--bounds.pixels", "1000000", "--replicas.scorers", "2", *more]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {
        "RAYAD_TOKENS": f"tests:{TOKEN},other:a-token-of-another-caller",
        "RAY_raylet_start_wait_time_s": "180",
    }
    with (folder / "log").open("w") as log:
        process = psutil.Popen(command, env=environment, stdout=log, stderr=log)
    scheme = "https" if "--listening.certificate" in more else "http"
    server = Served(f"{scheme}://127.0.0.1:{port}", process, folder, detectors)
    try:
        server.says(f"rayad serves spn, plain at {scheme}://", 240)
        temporary, children = private_folder(process), process.children(recursive=True)
        yield server
    finally:
        server.process.kill() if killed else server.process.terminate()
        server.process.wait(60)
    assert server.process.returncode == (-signal.SIGKILL if killed else 0)
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not temporary.exists()


def private_folder(process: psutil.Process) -> Path:
    """The temporary folder of a command that has started Ray, as its children know it."""
    return Path(next(filter(None, (child.environ().get(MARK) for child in process.children()))))
