"""A mixture of Gaussians with diagonal covariances, or of products of categorical distributions: the baseline.

Bishop, *Pattern Recognition and Machine Learning* (2006), section 9.2.2. It is the shallowest sum-product network:
one sum over products of univariate leaves, so it is built as one.
"""

from dataclasses import dataclass
from typing import Annotated

from rayad.density import spn
from rayad.errors import OptionError
from rayad.options import Share, Size, Weight, Within


@dataclass(frozen=True)
class Config:
    """Size of a mixture."""

    components: Size = 100
    """k: Gaussians of the mixture."""
    min_variance: Share = 1e-3
    """Smallest variance of a component, relative to its variable's variance in training."""
    weight_prior: Weight = 1.0
    """Pseudo-count of the mixture, in training rows spread evenly over its components."""
    leaf_prior: Weight = 0.0
    """Pseudo-count of every component, in training rows of the variables' own distribution."""
    state_prior: Weight = 1.0
    """Pseudo-count of every categorical leaf, in training rows spread evenly over its codes (Laplace)."""
    states: Annotated[tuple[int, ...], Within(0, 65_536)] = ()
    """Codes of every variable, 0 for a number; one entry serves all variables; none: all are numbers."""

    def __post_init__(self) -> None:
        if self.components < 1:
            raise OptionError(f"components of a mixture must be at least 1, not {self.components}")

    def build(self, variables: int) -> spn.SPN:
        """An untrained mixture over this many variables.

        Raises:
            OptionError: a size out of range.
        """
        circuit = spn.Config(
            inputs=self.components,
            depth=0,
            replicas=1,
            min_variance=self.min_variance,
            sum_prior=self.weight_prior,
            leaf_prior=self.leaf_prior,
            state_prior=self.state_prior,
            states=self.states,
        )
        return circuit.build(variables)
