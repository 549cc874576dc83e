"""deploy/serve.yaml: Ray's own schema takes it, it names the deployments that there are, and it serves."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import test_job
import yaml
from ray.serve.schema import ServeDeploySchema
from served import PATIENTS, free_port, made, png

from rayad.errors import RayadError
from rayad.scoring import bundle
from rayad.serving.client import Client

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
head, logs = test_job.head, test_job.logs


NAMES = """
import sys, yaml
from rayad.on_ray.serve import app

def names(application):
    top = application._bound_deployment
    return {top.name}.union(*(names(one) for one in top.init_args if hasattr(one, "_bound_deployment")))

print(*sorted(names(app(yaml.safe_load(sys.stdin)))))
"""
"""The deployments that are made of some arguments; in a process without the tests' type checker, as Ray makes them."""


def named(args: dict[str, Any], tokens: str = "me:a-token-of-enough-letters") -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, "-c", NAMES], os.environ | {"RAYAD_TOKENS": tokens}
    return subprocess.run(command, input=yaml.safe_dump(args), capture_output=True, text=True, timeout=120, env=env)


def test_the_config_is_one_of_ray_serve_and_of_this_application():
    (of,) = ServeDeploySchema.model_validate(CONFIG).applications
    assert sorted(one.name for one in of.deployments) == named(of.args).stdout.split()
    assert CONFIG["http_options"]["host"] == "127.0.0.1"
    assert of.args["detectors"] == {}
    assert of.deployments[0].user_config["detectors"]


def test_what_is_no_option_is_refused():
    (of,) = CONFIG["applications"]
    with pytest.raises(ValueError, match="replica"):
        ServeDeploySchema.model_validate(
            CONFIG | {"applications": [of | {"deployments": [{"name": "Scorer", "num_replicas": -1}]}]}
        )
    assert "unexpected keyword argument 'limit'" in named(of["args"] | {"limit": 3}).stderr


def test_nobody_is_served_by_oversight():
    (of,) = CONFIG["applications"]
    assert "the service needs tokens or an issuer of tokens" in named(of["args"], tokens="").stderr
    assert named(of["args"] | {"open_to_all": True}, tokens="").returncode == 0


def test_kubernetes_serves_the_same_application():
    service = yaml.safe_load((DEPLOY / "kuberay/rayservice.yaml").read_text())["spec"]["serveConfigV2"]
    ServeDeploySchema.model_validate(yaml.safe_load(service))
    assert yaml.safe_load(service)["applications"] == CONFIG["applications"]


@pytest.mark.long
def test_it_serves_and_a_detector_is_exchanged_without_losing_a_request(head, tmp_path):
    port, image = free_port(), png(PATIENTS, PATIENTS.exams()[0])
    for number in (1, 2):
        bundle.save(replace(made(number), name="cae-spn"), str(tmp_path / f"cae-spn-{number}"))
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (application,) = CONFIG["applications"]
    places = {
        "read": [f"file://{tmp_path}/in/"],
        "write": [f"file://{tmp_path}/out/"],
        "state": str(tmp_path / "state"),
        "open_to_all": True,
    }
    application = application | {"args": application["args"] | places}
    config = CONFIG | {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    client = Client(f"http://127.0.0.1:{port}", attempts=1)

    def deploy(number: int) -> None:
        application["deployments"][0]["user_config"]["detectors"]["cae-spn"] = str(tmp_path / f"cae-spn-{number}")
        (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
        command = [test_job.BIN / "serve", "deploy", "--address", head[0], str(tmp_path / "serve.yaml")]
        done = subprocess.run(command, env=head[1], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    deploy(1)
    test_job.until(lambda: ready(client.url), "it does not get ready")
    served: list[str] = []
    lost: list[RayadError] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                served.append(client.score(image, spacing_mm=0.8, view="MLO").detector.sha256)
            except RayadError as error:
                lost.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(2)
        deploy(2)
        test_job.until(lambda: len({*served}) == 2, "the other detector does not come")
        time.sleep(2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not lost
    assert served[0] != served[-1] == client.detectors()[0].sha256


def ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/v1/ready", timeout=10).ok
    except requests.RequestException:
        return False  # nobody listens yet, or the application is not there
