"""A one-class support vector machine: the smallest region of the latents that holds most of training.

Schölkopf et al., "Estimating the Support of a High-Dimensional Distribution", Neural Computation 2001, as scikit-learn
fits it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sklearn.svm import OneClassSVM
from torch import Tensor

from rayad.density._arrays import Learned, Others, in_parts, squared_distances
from rayad.errors import OptionError
from rayad.options import Share, Weight
from rayad.progress import Row
from rayad.tensors import Latents, Scores


@dataclass(frozen=True)
class Config:
    """How tight the region is."""

    nu: Share = 0.1
    """Share of training that may lie outside, at most."""
    gamma: Weight = 0.0
    """Width of the kernel exp(-gamma |a - b|^2) over standardized latents; 0: 1 / (latents * their variance)."""

    def __post_init__(self) -> None:
        if not 0 < self.nu <= 1:
            raise OptionError(f"nu of a support vector machine must be in (0, 1], not {self.nu}")
        if not self.gamma >= 0:
            raise OptionError(f"gamma of a support vector machine must be at least 0, not {self.gamma}")

    def build(self, variables: int) -> "Machine":
        """A machine that learned nothing."""
        return Machine(self, variables)


class Machine(Learned):
    """Novelty: rho - sum_i a_i k(z_i, z), above 0 outside the region."""

    vectors: Tensor
    weights: Tensor
    gamma: Tensor
    rho: Tensor

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__(variables, vectors="k m", weights="k", gamma="", rho="")
        self.config = config

    def learn(self, train: Latents, validation: Others, seed: int) -> Row:
        """Fit; there is no chance in it."""
        z = self.standardize(train, 2).cpu().numpy()
        gamma = self.config.gamma or 1 / (self.variables * float(z.var()))
        settings: Any = {"nu": self.config.nu, "gamma": gamma}
        estimator = OneClassSVM(**settings).fit(z)
        rho = -torch.as_tensor(estimator.intercept_)[0]
        self.keep(vectors=estimator.support_vectors_, weights=estimator.dual_coef_[0], gamma=gamma, rho=rho)
        return {"support_vectors": len(self.vectors)}

    def novelty(self, z: Latents) -> Scores:
        """How far outside the region, in units of the kernel."""
        return in_parts(self._novelty, z, len(self.vectors))

    def _novelty(self, z: Latents) -> Scores:
        kernel = (-self.gamma * squared_distances(self.standardized(z), self.vectors)).exp()
        return self.rho - kernel @ self.weights
