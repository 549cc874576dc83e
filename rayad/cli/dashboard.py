"""The dashboard of runs and sweeps."""

import os
from dataclasses import dataclass
from importlib import import_module

from rayad import storage
from rayad.cli import EXTRAS
from rayad.cli.shared import Several
from rayad.options import Port


@dataclass(frozen=True)
class Dashboard:
    """Runs, sweeps and faults below some folders as a page, with the tools that show the rest; until Ctrl-C."""

    root: Several
    """Folders or URLs whose runs, sweeps and corpora are shown; Optuna's dashboard and TensorBoard need local ones."""
    port: Port = 0
    """Port of the page, on 127.0.0.1; TensorBoard, Prometheus and Optuna's dashboards take those behind it. 0: free
    ones."""
    discovery: str = "/tmp/ray/prom_metrics_service_discovery.json"
    """The list of metric ports that a Ray cluster keeps in its --temp-dir, for Prometheus."""

    def __call__(self) -> None:
        for module in EXTRAS["dashboard"]:
            import_module(module)
        from rayad.dashboard.serve import show

        show([storage.absolute(root) for root in self.root], self.port, os.path.abspath(self.discovery))
