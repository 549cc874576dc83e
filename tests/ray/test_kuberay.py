"""The manifests of deploy/kuberay have the fields that KubeRay knows, and no file for a cluster holds a secret."""

import copy
import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCHEMA = json.loads((HERE / "kuberay_schema.json").read_text())
MANIFESTS = {file.stem: yaml.safe_load(file.read_text()) for file in (ROOT / "deploy/kuberay").glob("*.yaml")}
SECRET = re.compile(r"AWS_\w+|RAYAD_LOG_URL|\w*(TOKEN|SECRET|PASSWORD|KEY)\w*", re.IGNORECASE)
"""Names of variables that must come from a secret."""
LITERAL = re.compile(
    r"AKIA\w{16}|-----BEGIN|(secret_?(access_?)?key|access_?key(_?id)?|password|auth_?token)\s*[=:]\s*[\w\"']", re.I
)
"""What a secret in a file looks like."""
SERVING = [
    {"name": "RAY_automatic_object_spilling_enabled", "value": "0"},
    {"name": "RAY_object_spilling_directory", "value": "/dev/shm"},
    {"name": "RAYAD_TMPDIR", "value": "/dev/shm"},
    {"name": "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "value": "rayad.serving.unanswered:middlewares"},
]
"""What keeps uploads off the disk, and asks again what a replica of the API died over (docs/serving.md)."""


def cluster(kind: str) -> dict[str, Any]:
    """The cluster's spec in a manifest."""
    spec = MANIFESTS[kind]["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def serving(spec: dict[str, Any]) -> dict[str, Any]:
    """A cluster's spec with the variables of the service on every pod."""
    spec = copy.deepcopy(spec)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        container["env"] = container["env"] + SERVING
    return spec


def pods() -> Iterator[dict[str, Any]]:
    """The pods of the cluster that all manifests have."""
    spec = cluster("raycluster")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("kind", ["raycluster", "rayjob", "rayservice"])
def test_a_manifest_has_known_fields_and_the_one_cluster(kind):
    jsonschema.validate(MANIFESTS[kind], SCHEMA, jsonschema.Draft202012Validator)
    assert cluster(kind) == (serving(cluster("raycluster")) if kind == "rayservice" else cluster("raycluster"))


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        (("spec",), "enableInTreeAutoscaling", "enableInTreeAutoscalling"),
        (("spec", "authOptions"), "mode", "mod"),
        (("spec", "workerGroupSpecs", 0), "maxReplicas", "maxReplica"),
        (("spec", "headGroupSpec", "template", "spec"), "volumes", "volume"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0), "envFrom", "envfrom"),
    ],
)
def test_a_typing_error_is_refused(path, right, wrong):
    manifest = copy.deepcopy(MANIFESTS["raycluster"])
    place: Any = manifest
    for step in path:
        place = place[step]
    place[wrong] = place.pop(right)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA, jsonschema.Draft202012Validator)


def test_a_number_as_start_parameter_is_refused():
    manifest = copy.deepcopy(MANIFESTS["raycluster"])
    manifest["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # KubeRay wants texts
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA, jsonschema.Draft202012Validator)


def test_every_pod_gets_what_it_asks_for_and_its_secrets_by_reference():
    for pod in pods():
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"secretRef": {"name": "rayad-storage"}} in container["envFrom"]
        assert not [of["name"] for of in container["env"] if SECRET.fullmatch(of["name"])]
        mounted = {of["name"]: of["mountPath"] for of in container["volumeMounts"]}
        shared = next(of for of in pod["volumes"] if of["emptyDir"].get("medium") == "Memory")
        assert mounted[shared["name"]] == "/dev/shm"
        assert set(mounted) == {of["name"] for of in pod["volumes"]}


def test_the_cluster_is_of_the_installed_ray_grows_and_wants_a_token():
    spec = cluster("raycluster")
    assert spec["rayVersion"] == metadata.version("ray")
    assert spec["enableInTreeAutoscaling"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["cpu", "gpu"]


def test_the_job_runs_a_script_that_is_there_with_the_environment_of_jobs():
    spec = MANIFESTS["rayjob"]["spec"]
    script = spec["entrypoint"].split()[1]
    assert (ROOT / Path(script).relative_to("/opt/rayad")).is_file()
    variables = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())["env_vars"]
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"].items() <= variables.items()


FILES = [
    ROOT / "cluster.yaml",
    ROOT / "jobs/runtime_env.yaml",
    *(f for f in (ROOT / "deploy").rglob("*") if f.is_file()),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_secret_stands_in_a_file(file):
    assert not LITERAL.search(file.read_text())


def test_a_secret_would_have_been_seen():
    assert LITERAL.search("AWS_SECRET_ACCESS_KEY=abc")
    assert LITERAL.search("aws_access_key_id: AKIA")
    assert LITERAL.search('password: "x"')
