"""Programs that show what our page does not: Optuna's dashboard, TensorBoard, Prometheus; each on 127.0.0.1 alone."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from rayad import storage
from rayad.dashboard.overview import Overview
from rayad.dashboard.page import Line
from rayad.errors import OptionError

GRAFANA = Path(__file__).parents[2] / "dashboards" / "grafana"
"""The dashboards to import, in a checkout of the repository."""
READY_S = 60.0
"""Seconds that a program has until it answers."""
STOP_S = 10.0
"""Seconds that a program has to stop."""


def prometheus_configuration(discovery: str) -> dict:
    """What Prometheus is told; dashboards/prometheus.yml is the same.

    Args:
        discovery: the file in which a Ray cluster keeps the list of its nodes' metric ports.
    """
    targets = [{"files": [discovery], "refresh_interval": "10s"}]
    return {
        "global": {"scrape_interval": "5s"},
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": targets}],
    }


class Ports:
    """Free ports of 127.0.0.1, or those from a number on."""

    def __init__(self, first: int) -> None:
        self._next = first

    def take(self) -> int:
        """The next one.

        Raises:
            OptionError: it was given and is taken, or there is no such port.
        """
        port = self._next
        self._next += bool(port)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise OptionError(f"port {port} of 127.0.0.1 cannot be had: {reason}") from error
            return probe.getsockname()[1]


class Tools:
    """The programs that were started here, and a line on each."""

    def __init__(self, folder: Path, ports: Ports, discovery: str) -> None:
        """
        Args:
            folder: for logs, configurations and what Prometheus stores.
            ports: as they are taken: TensorBoard, Prometheus, Optuna's dashboards as sweeps appear.
            discovery: see `prometheus_configuration`.
        """
        self._folder, self._ports, self._discovery = folder, ports, discovery
        self._tensorboard, self._prometheus = ports.take(), ports.take()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._lines: dict[str, Line] = {}

    @property
    def lines(self) -> list[Line]:
        """Of every tool, also of those that cannot be started."""
        return list(self._lines.values())

    async def keep_up(self, overview: Overview) -> None:
        """Start what can be started by now, and see what has ended."""
        await asyncio.gather(
            self._show_metrics(),
            self._show_events(overview.events),
            *(self._show_sweep(sweep.place, sweep.storage) for sweep in overview.sweeps),
        )
        for key, process in self._processes.items():
            if process.returncode is not None:
                self._lines[key] = Line(self._lines[key].tool, f"has ended: {self._last_words(key)}")

    async def stop(self) -> None:
        """End all of them."""
        for process in self._processes.values():
            _signal(process, signal.SIGTERM)
        for process in self._processes.values():
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                _signal(process, signal.SIGKILL)
                await process.wait()

    async def _show_metrics(self) -> None:
        if not shutil.which("prometheus"):
            self._lines["prometheus"] = Line("Prometheus", "is not installed: apt-get install prometheus")
            return
        port, configuration = self._prometheus, self._folder / "prometheus.yml"
        configuration.write_text(json.dumps(prometheus_configuration(self._discovery)), encoding="utf-8")
        command = [
            *("prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={self._folder / 'prometheus'}"),
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        status = "" if os.path.exists(self._discovery) else f"waits for Ray: {self._discovery} is not there"
        await self._start("prometheus", Line("Prometheus", status, f"http://127.0.0.1:{port}"), command)
        self._lines["grafana"] = Line("Grafana", _grafana(self._lines["prometheus"].address))

    async def _show_events(self, events: dict[str, str]) -> None:
        if not events:
            self._lines["tensorboard"] = Line("TensorBoard", "no events yet: rayad train --strips.tensorboard")
            return
        logs = self._folder / "events"
        for place, folder in sorted(events.items()):
            link = logs / place
            if any(parent.is_symlink() for parent in link.parents):
                continue  # TensorBoard finds it below that one
            if link.is_dir() and not link.is_symlink():
                link = link / "itself"  # one below it came first
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(folder, target_is_directory=True)
        port = self._tensorboard
        command = [sys.executable, "-P", "-m", "tensorboard.main", "--logdir", str(logs), "--reload_interval", "10"]
        line = Line("TensorBoard", "losses and strips of every epoch", f"http://127.0.0.1:{port}")
        await self._start("tensorboard", line, [*command, "--host", "127.0.0.1", "--port", str(port)])

    async def _show_sweep(self, place: str, path: str) -> None:
        if not path:
            self._lines[place] = Line("Optuna", f"{place}: its optuna.db is not on this machine")
        elif place not in self._processes:
            try:
                port = self._ports.take()
            except OptionError as error:
                self._lines[place] = Line("Optuna", f"{place}: {error}")
                return
            command = [sys.executable, "-P", "-m", "optuna_dashboard._cli", "--host", "127.0.0.1", "--port", str(port)]
            line = Line("Optuna", place, f"http://127.0.0.1:{port}")
            await self._start(place, line, [*command, f"sqlite:///{storage.absolute(path)}"])

    async def _start(self, key: str, line: Line, command: list[str]) -> None:
        """Start a program once, in a session of its own: Ctrl-C reaches this process alone, which stops it."""
        if key not in self._processes:
            with open(self._log(key), "wb") as log:
                self._processes[key] = await asyncio.create_subprocess_exec(
                    *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            await _ready(self._processes[key], int(line.address.rsplit(":", 1)[1]))
        self._lines[key] = line

    def _log(self, key: str) -> Path:
        return self._folder / f"{key.replace('/', '-')}.log"

    def _last_words(self, key: str) -> str:
        text = self._log(key).read_text(encoding="utf-8", errors="replace").strip()
        return text.splitlines()[-1] if text else "it said nothing"


async def _ready(process: asyncio.subprocess.Process, port: int) -> None:
    """Wait until the program listens, has ended, or had its time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + READY_S
    while process.returncode is None and loop.time() < until:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.2)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _grafana(source: str) -> str:
    is_installed = shutil.which("grafana-server") or shutil.which("grafana")
    if not GRAFANA.is_dir():
        return "its dashboards are in the repository, not in the installed package"
    files = ", ".join(os.path.relpath(file) for file in sorted(GRAFANA.glob("*.json")))
    instruction = f"import {files} with {source} as its Prometheus"
    return instruction if is_installed else f"is not installed; where it is: {instruction}"
