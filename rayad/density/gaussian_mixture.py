"""A mixture of Gaussians with covariances, fitted by scikit-learn: what a circuit has to beat.

Bishop, *Pattern Recognition and Machine Learning* (2006), section 9.2. rayad/density/mixture.py is the one with
diagonal covariances that learns on many workers.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from rayad.density._arrays import Learned, Others, in_parts
from rayad.errors import OptionError
from rayad.options import Size, Weight
from rayad.progress import Row
from rayad.tensors import Latents, Scores


@dataclass(frozen=True)
class Config:
    """Size of a mixture."""

    components: Size = 10
    """k: Gaussians of the mixture."""
    covariance: str = "full"
    """Covariances: full, one for each Gaussian; tied, one for all; diag, without correlations."""
    regularization: Weight = 1e-3
    """Constant added to the variances, relative to those of the training latents."""

    def __post_init__(self) -> None:
        if self.components < 1:
            raise OptionError(f"components of a mixture must be at least 1, not {self.components}")
        if self.covariance not in ("full", "tied", "diag"):
            raise OptionError(f"covariance of a mixture is full, tied or diag, not {self.covariance!r}")
        if not self.regularization > 0:
            raise OptionError(f"regularization of a mixture must be above 0, not {self.regularization}")

    def build(self, variables: int) -> "Mixture":
        """A mixture that learned nothing."""
        return Mixture(self, variables)


class Mixture(Learned):
    """log p(z) = log sum_k w_k N(z; mu_k, Sigma_k)."""

    log_weights: Tensor
    means: Tensor
    factors: Tensor
    """k m m: Cholesky factors of the precisions."""

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__(variables, log_weights="k", means="k m", factors="k m m")
        self.config = config

    def learn(self, train: Latents, validation: Others, seed: int) -> Row:
        """Fit by expectation-maximization; the validation latents are judged, not used."""
        z = self.standardize(train, self.config.components + 1).cpu().numpy()
        estimator = GaussianMixture(
            self.config.components,
            covariance_type=self.config.covariance,  # type: ignore[reportArgumentType]  one of its words
            reg_covar=self.config.regularization,
            max_iter=200,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is in the row
            estimator.fit(z)
        factors = torch.as_tensor(estimator.precisions_cholesky_)
        if self.config.covariance == "diag":
            factors = torch.diag_embed(factors)
        elif self.config.covariance == "tied":
            factors = factors.expand(self.config.components, -1, -1)
        self.keep(log_weights=torch.as_tensor(estimator.weights_).log(), means=estimator.means_, factors=factors)
        likelihood = float(self.log_prob(validation).double().mean()) if len(validation) else math.nan
        return {
            "iterations": int(estimator.n_iter_),
            "converged": float(estimator.converged_),
            "validation": likelihood,
        }

    def log_prob(self, z: Latents) -> Scores:
        """log p(z), in nats; where values are missing (nan), of the others (the marginal)."""
        if not z.isnan().any():
            return in_parts(self._log_prob, z, self.means.numel())
        patterns, pattern_of = z.isnan().unique(dim=0, return_inverse=True)
        scores = z.new_empty(len(z))
        for number, missing in enumerate(patterns):
            rows = pattern_of == number
            if missing.all():
                scores[rows] = 0.0
                continue
            marginal = self._without(missing)
            scores[rows] = in_parts(marginal._log_prob, z[rows][:, ~missing], self.means.numel())
        return scores

    def _without(self, missing: Bool[Tensor, " m"]) -> "Mixture":
        """The mixture of the other variables alone."""
        observed = ~missing
        inverse = torch.linalg.inv(self.factors)
        covariances = (inverse.mT @ inverse)[:, observed][:, :, observed]
        marginal = Mixture(self.config, int(observed.sum()))
        marginal.keep(
            centre=self.centre[observed],
            scale=self.scale[observed],
            log_weights=self.log_weights,
            means=self.means[:, observed],
            factors=torch.linalg.inv(torch.linalg.cholesky(covariances)).mT,
        )
        return marginal

    def _log_prob(self, z: Latents) -> Scores:
        deviations = self.standardized(z) @ self.factors - (self.means[:, None] @ self.factors)  # k n m
        determinants = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.log_weights + determinants - self.variables / 2 * math.log(2 * math.pi)
        return (constant[:, None] - deviations.square().sum(2) / 2).logsumexp(0) + self.log_determinant
