"""What labels teach on Ray is what they teach in this process."""

import numpy as np
from untrained import parts

from rayad.datasets import phantom
from rayad.imaging.mammogram import Preprocessing
from rayad.on_ray.pool import OnRay
from rayad.pipeline.requests import TeachRequest
from rayad.pipeline.teach import teach
from rayad.pool import Here, Workers
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor, LatentScore

ORIGIN = dict.fromkeys(("corpus", "dataset", "commit", "versions", "machine"), "") | {"seed": 0, "step_mm": 6.4}


def test_two_workers_teach_what_one_process_does(tmp_path):
    """By scores of two pictures and by latents."""
    dataset = phantom.Dataset(patients=16, height=256, width=192, spacing_mm=0.8)
    members = [
        Detector("bright", Floor("brightness"), Preprocessing(spacing_mm=0.8), provenance=ORIGIN | {"made_of": "b"}),
        Detector("spn", LatentScore(*parts()), Preprocessing(), provenance=ORIGIN | {"made_of": "s"}),
    ]
    request = TeachRequest(features="scores-and-latents")
    made = [
        teach(pool, "taught", request, members, dataset, 6.4, str(tmp_path / name))
        for name, pool in (("here", Here()), ("ray", OnRay(Workers(1))))
    ]
    (here, on_ray) = (detector.teaching for detector in made)
    assert here is not None
    assert on_ray is not None
    assert here.latents == 6
    tensors = on_ray.to_tensors()
    assert tensors.keys() == here.to_tensors().keys()
    for name, array in here.to_tensors().items():
        assert np.allclose(tensors[name], array, rtol=1e-5, atol=1e-7), name
    assert made[0].provenance == made[1].provenance
