"""Detectors that have learned nothing: their numbers are as good as any."""

import torch

from rayad import catalog
from rayad.density import spn
from rayad.scoring.scores import Part


def parts(seed: int = 0) -> tuple[Part, Part]:
    """A small autoencoder of six latents, and a circuit over them that was started from noise."""
    torch.manual_seed(seed)
    config = catalog.configure("models", "cae", {"width": 4, "latents": 6})
    density = spn.Config(inputs=3, replicas=2).build(6)
    density.start(torch.randn(50, 6), 0)
    return Part("cae", config, config.build().eval()), Part("spn", density.config, density.eval(), 6)
