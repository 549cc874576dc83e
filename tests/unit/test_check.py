"""What the checker of bundles finds."""

import pytest
import safetensors.torch
import torch

from rayad import cli, storage
from rayad.density import spn
from rayad.imaging.mammogram import Preprocessing
from rayad.models import cae
from rayad.scoring import bundle
from rayad.scoring.check import faults
from rayad.scoring.detector import Detector
from rayad.scoring.scores import ModelScore, Part


def saved(url: str, spoil=lambda state: None) -> str:
    """The bundle of a small detector whose parameters were spoiled before they were written."""
    config = cae.Config(width=4, latents=6)
    module = config.build()
    spoil(module.state_dict())
    bundle.save(Detector("cae", ModelScore(Part("cae", config, module), "reconstruction"), Preprocessing()), url)
    return url


def test_a_whole_bundle_has_no_faults_and_a_line_about_itself(tmp_path, capsys):
    assert faults(saved(str(tmp_path))) == []
    assert cli.run(["check", "--detector", str(tmp_path)]) == 0
    assert "cae scores by reconstruction" in capsys.readouterr().out


def test_numbers_that_are_none_are_found(tmp_path, capsys):
    url = saved(str(tmp_path), lambda state: state["encoder.head.bias"].fill_(torch.nan))
    assert faults(url) == ["model: encoder.head.bias holds numbers that are not finite"]
    assert cli.run(["check", "--detector", url]) == 1
    assert "1 of 1 detectors" in capsys.readouterr().err


def test_missing_and_unknown_fields_are_named(tmp_path):
    url = saved(str(tmp_path))
    said = bundle.describe(url)
    del said["aggregation"]
    storage.write_json(f"{url}/detector.json", said | {"colour": "blue"})
    assert faults(url) == [
        "detector.json has no 'aggregation'",
        "detector.json has a field 'colour' that nobody knows",
    ]


def test_tensors_that_nothing_names_are_found(tmp_path):
    url = saved(str(tmp_path))
    storage.write_bytes(f"{url}/old.safetensors", safetensors.torch.save({"x": torch.zeros(1)}))
    assert faults(url) == ["old.safetensors is beside the bundle's files, and nothing names it"]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda c: None, None),
        (lambda c: c.leaves.scopes.copy_(c.leaves.scopes.roll(1)), "the regions are not those of seed 0"),
        (lambda c: c.root.weights.mul_(2), "the weights of sum layer 0 are no distributions"),
        (lambda c: c.mixing.mul_(2), "the shares of the roots are no distribution"),
        (lambda c: c.leaves.variance.fill_(1e-9), "variances of leaves are not between 0.001 and 10.0"),
        (lambda c: c.standardization.scale.zero_(), "a variable's scale is not positive"),
    ],
)
@pytest.mark.parametrize("axes", ["variables", "principal"])
def test_a_circuit_that_no_learning_leaves_behind_is_found(axes, spoil, fault):
    assert list(spoiled(axes, spoil).faults()) == ([fault] if fault else [])


@pytest.mark.parametrize("spoil", [lambda c: c.inner[0].outer.mul_(2), lambda c: c.inner[0].inner.neg_()])
def test_factors_that_are_no_distributions_are_found(spoil):
    circuit = spn.Config(inputs=3, sums=4, depth=2, replicas=2, blocks=2).build(6)
    assert list(circuit.faults()) == []
    spoil(circuit)
    assert list(circuit.faults()) == ["the weights of sum layer 0 are no distributions"]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda c: c.standardization.axes.mul_(2), "the principal axes are not perpendicular unit vectors"),
        (lambda c: c.standardization.spread.zero_(), "a principal axis has no spread"),
    ],
)
def test_axes_that_no_rows_have_are_found(spoil, fault):
    assert list(spoiled("principal", spoil).faults()) == [fault]


def spoiled(axes, spoil) -> spn.SPN:
    circuit = spn.Config(inputs=3, replicas=2, axes=axes).build(6)
    circuit.start(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), 0)
    spoil(circuit)
    return circuit
