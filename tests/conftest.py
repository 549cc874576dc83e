"""A test's folder is its marker; what a folder needs and is not there skips its tests, or fails them under CI."""

import os
import socket
from pathlib import Path

import pytest

os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 its workers starve beside other tests
HERE = Path(__file__).parent
LONGEST = {"test_terminal", "test_models", "test_doors", "test_vqvae", "test_latent_detectors"}
"""Files whose tests come before others of their folder: where several processes test, none is left alone with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])
    items.sort(key=lambda item: (item.path.parent, item.path.stem not in LONGEST))


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made first: while a cluster runs, new temporary folders lie in the cluster's own, which goes with it."""
    return tmp_path_factory.getbasetemp()


def missing(reason: str) -> None:
    """Skip, or fail under CI=true, because something that the test needs is not here."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images that RAYAD_DATA names."""
    folder = os.environ.get("RAYAD_DATA")
    if not folder:
        missing("RAYAD_DATA is not set: name the folder that holds mini-mias, ddsm-tissue-66, ...")
    assert folder is not None
    return Path(folder)


def is_free(port: int) -> bool:
    """Whether a port of 127.0.0.1 can be had."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
