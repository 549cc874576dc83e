"""Scores are kept and reported by a detector's name, so two of one name are refused before anything is scored."""

from dataclasses import asdict, replace

import pytest

from rayad import cli
from rayad.datasets import phantom
from rayad.datasets.splits import Division, divided
from rayad.errors import OptionError
from rayad.imaging.mammogram import Preprocessing
from rayad.pipeline.adjust import adjust_detectors
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.combine import combine
from rayad.pipeline.detectors import inherited, require_shares
from rayad.pipeline.evaluate import Evaluation, evaluate
from rayad.pipeline.requests import TeachRequest
from rayad.pipeline.streamed import streamed
from rayad.pipeline.teach import teach
from rayad.pool import Here
from rayad.scoring import bundle
from rayad.scoring.combine import PLAIN
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor

ONE = Detector("same", Floor("brightness"), Preprocessing(), provenance={"made_of": "one", "step_mm": 3.2})
OTHER = replace(ONE, preprocessing=Preprocessing(spacing_mm=0.8), provenance={"made_of": "other", "step_mm": 3.2})
PHANTOM = phantom.Dataset(patients=4)


@pytest.mark.parametrize(
    "stage",
    [
        lambda both, out: calibrate_detectors(Here(), both, PHANTOM, 3.2, out),
        lambda both, out: adjust_detectors(Here(), both, [PLAIN] * 2, PHANTOM, 3.2, [out, out]),
        lambda both, out: combine(Here(), "both", "fisher", both, PHANTOM, 3.2, out),
        lambda both, out: teach(Here(), "taught", TeachRequest(), both, PHANTOM, 3.2, out),
        lambda both, out: evaluate(Here(), both, PHANTOM, Evaluation("phantom", "", "test", 3.2), out),
        lambda both, out: streamed(Here(), both, PHANTOM, Evaluation("phantom", "", "test", 3.2), out),
    ],
    ids=["calibrate", "adjust", "combine", "teach", "evaluate", "streamed"],
)
def test_two_detectors_of_one_name_are_refused(stage, tmp_path):
    with pytest.raises(OptionError, match="two detectors are called 'same'"):
        stage([ONE, OTHER], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "stage",
    [
        lambda one, images, out: calibrate_detectors(Here(), [one], images, 3.2, out),
        lambda one, images, out: adjust_detectors(Here(), [one], [PLAIN], images, 3.2, [out]),
        lambda one, images, out: teach(Here(), "taught", TeachRequest(), [one], images, 3.2, out),
        lambda one, images, out: evaluate(Here(), [one], images, Evaluation("phantom", "", "test", 3.2), out),
        lambda one, images, out: streamed(Here(), [one], images, Evaluation("phantom", "", "test", 3.2), out),
    ],
    ids=["calibrate", "adjust", "teach", "evaluate", "streamed"],
)
def test_patients_that_may_have_been_learned_from_are_refused(stage, tmp_path):
    shares = Division(train=0.7)
    one = replace(ONE, provenance=ONE.provenance | {"learned_from": {"ddsm": {}, "phantom": asdict(shares)}})
    with pytest.raises(OptionError, match=r"divided by --shares train=0.7 validation=0.1 calibration=0.15"):
        stage(one, PHANTOM, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match=r"not calibrated"):  # the same shares are not refused
        evaluate(Here(), [one], divided(PHANTOM, shares), Evaluation("phantom", "", "test", 3.2), str(tmp_path))


def test_patients_that_another_part_may_have_learned_from_are_refused():
    """A model that learned from 75 % of the patients, and a density of 50 % of them with the rest held out."""
    model, density = ({"learned_from": {"phantom": asdict(Division(train=share))}} for share in (0.75, 0.5))
    with pytest.raises(OptionError, match=r"phantom was divided by --shares train=0.5 .* and by --shares train=0.75 "):
        inherited(density, model)
    elsewhere = {"learned_from": {"ddsm": asdict(Division(train=0.5))}}
    assert inherited(elsewhere, model)["learned_from"] == elsewhere["learned_from"] | model["learned_from"]


def test_usual_shares_are_shares_too():
    """Of a bundle of an older rayad, which names one data set."""
    one = replace(ONE, provenance=ONE.provenance | {"dataset": "phantom"})
    with pytest.raises(OptionError, match=r"divided by --shares train=0.6 .*; give the same"):
        require_shares([one], divided(PHANTOM, Division(train=0.7)))
    require_shares([one], PHANTOM)


@pytest.mark.parametrize("command", [["calibrate", "--scores"], ["evaluate", "--out"]])
def test_a_command_says_so_before_a_cluster_starts(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rayad.on_ray.cluster.cluster", None)
    urls = [str(tmp_path / name) for name in ("a", "b")]
    for detector, url in zip((ONE, OTHER), urls, strict=True):
        bundle.save(detector, url)
    name, option = command
    assert cli.run([name, "--detector", *urls, "--dataset", "phantom", option, str(tmp_path / "out")]) == 2
    assert "two detectors are called 'same'" in capsys.readouterr().err
