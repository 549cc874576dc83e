"""cluster.yaml and deploy/local.yaml are files that `ray up` accepts: Ray's own schema says so."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = {"cluster.yaml": {"head", "cpu", "gpu"}, "deploy/local.yaml": {"local.cluster.node"}}
"""File -> the types of nodes in it."""


def loaded(file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_ray_accepts_the_cluster(file):
    config = prepare_config(loaded(file))
    validate_config(config)
    assert set(config["available_node_types"]) == FILES[file]


@pytest.mark.parametrize("file", FILES)
def test_ray_would_have_noticed_a_wrong_key(file):
    wrong = loaded(file) | {"idle_timeout_minute": 3}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("file", FILES)
def test_whoever_has_no_token_is_refused_and_the_dashboard_stays_on_the_loopback(file):
    config = loaded(file)
    head, worker = (config[f"{of}_start_ray_commands"][-1] for of in ("head", "worker"))
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert "~/.ray/auth_token" in config["file_mounts"].values()


def test_the_groups_grow_to_what_the_cluster_may_have_and_cpus_are_spot():
    config = loaded("cluster.yaml")
    nodes = config["available_node_types"]
    assert config["max_workers"] == sum(of.get("max_workers", 0) for of in nodes.values())
    assert nodes["cpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert nodes["head"]["resources"] == {"CPU": 0}
