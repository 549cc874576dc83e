"""A real archive on loopback: Orthanc with its DICOMweb plug-in, from Debian."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import missing

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
START_TIMEOUT_S = 60
LOGIN = ("reader", "secret of the reader")


class Archive:
    """An Orthanc whose files outlive its process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.root, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.url = f"{self.root}/dicom-web"
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {LOGIN[0]: LOGIN[1]},
            "DicomServerEnabled": False,
            "Plugins": [PLUGIN],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "LimitFindInstances": 0,
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))

    def start(self) -> None:
        """Returns when it answers."""
        binary = shutil.which("Orthanc")
        if not binary or not Path(PLUGIN).exists():
            missing("no archive here (Debian: apt-get install orthanc orthanc-dicomweb)")
        assert binary is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([binary, str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        self._wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.root}/system", timeout=2).close()
            except urllib.error.HTTPError:  # it answers: credentials are missing
                return
            except OSError:
                time.sleep(0.1)
            else:
                return
        pytest.fail(f"Orthanc did not start: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty archive; user "reader", password "secret of the reader"."""
    archive = Archive(tmp_path_factory.mktemp("orthanc"))
    archive.start()
    yield archive.url
    archive.process.kill()
    archive.process.wait(30)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """An empty archive of a single test."""
    archive = Archive(tmp_path)
    archive.start()
    yield archive
    archive.process.kill()
    archive.process.wait(30)
