"""cluster.yaml is one that `ray up` accepts: Ray's own schema says so."""

from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

TEXT = (Path(__file__).parents[2] / "cluster.yaml").read_text()


def test_ray_accepts_the_cluster():
    config = prepare_config(yaml.safe_load(TEXT))
    validate_config(config)
    assert set(config["available_node_types"]) == {"head", "cpu", "gpu"}


def test_ray_would_have_noticed_a_wrong_key():
    wrong = yaml.safe_load(TEXT) | {"max_worker": 3}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


def test_no_credential_stands_in_the_file():
    assert not {"aws_access_key_id", "aws_secret_access_key", "password", "token:"} & set(TEXT.lower().split())
