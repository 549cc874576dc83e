"""What marked lesions taught: from the scores of several detectors at a place to the log-odds of a lesion there.

A place is described by features: the rarity of each detector's score (rayad/scoring/combine.py), and where they are
wanted the latents of a model, reduced to their principal axes in healthy tissue. The first feature is the first
detector's rarity r, and everything that is learned is a correction of it,

    log-odds = r + strength-limited function of the features,

so that what learned nothing is the first detector. How it is learned: rayad/scoring/teaching.py. Everything is kept as
arrays of numbers, and a bundle that holds others than are meant here is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from rayad.errors import FormatError
from rayad.scoring.trees import Trees

Features = Float[np.ndarray, "n f"]
LogOdds = Float[np.ndarray, " n"]
MOST_LATENTS, MOST_AXES, MOST_UNITS = 65_536, 64, 1024
"""Of a bundle: latents that are reduced, axes that are left of them, units of a network."""
TREES = tuple(Trees.__dataclass_fields__)
"""Names of the arrays of trees."""


@dataclass(frozen=True)
class Logistic:
    """Logistic regression with the rarity as offset, r + w x + b."""

    weights: Float[np.ndarray, " f"]
    bias: Float[np.ndarray, "1"]

    ARRAYS: ClassVar[tuple[str, ...]] = ("weights", "bias")

    @property
    def features(self) -> int:
        return self.weights.size

    def log_odds(self, x: Features) -> LogOdds:
        return x[:, 0] + x @ self.weights + self.bias[0]

    def to_tensors(self) -> dict[str, np.ndarray]:
        return {"weights": self.weights, "bias": self.bias}


@dataclass(frozen=True)
class Perceptron:
    """A network of one hidden layer, r + v tanh(W x + a) + b."""

    hidden: Float[np.ndarray, "f u"]
    hidden_bias: Float[np.ndarray, " u"]
    weights: Float[np.ndarray, " u"]
    bias: Float[np.ndarray, "1"]

    ARRAYS: ClassVar[tuple[str, ...]] = ("hidden", "hidden_bias", "weights", "bias")

    @property
    def features(self) -> int:
        return self.hidden.shape[0]

    def log_odds(self, x: Features) -> LogOdds:
        return x[:, 0] + np.tanh(x @ self.hidden + self.hidden_bias) @ self.weights + self.bias[0]

    def to_tensors(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self.ARRAYS}


@dataclass(frozen=True)
class RandomForest:
    """A random forest, r + s log(p / (1 - p)), p the mean share of lesions in leaves, a half added to each class."""

    trees: Trees
    features: int
    strength: float

    ARRAYS: ClassVar[tuple[str, ...]] = (*TREES, "features", "strength")

    def log_odds(self, x: Features) -> LogOdds:
        number = self.trees.roots.size
        share = (np.clip(self.trees.sums(x), 0, number) + 0.5) / (number + 1)
        return x[:, 0] + self.strength * np.log(share / (1 - share))

    def to_tensors(self) -> dict[str, np.ndarray]:
        numbers = {"features": np.array([self.features]), "strength": np.array([float(self.strength)])}
        return self.trees.to_tensors() | numbers


@dataclass(frozen=True)
class BoostedTrees:
    """Gradient boosting that begins with the rarity, r + b + rate * the sum of the trees."""

    trees: Trees
    features: int
    rate: float
    bias: float

    ARRAYS: ClassVar[tuple[str, ...]] = (*TREES, "features", "rate", "bias")

    def log_odds(self, x: Features) -> LogOdds:
        return x[:, 0] + self.bias + self.rate * self.trees.sums(x)

    def to_tensors(self) -> dict[str, np.ndarray]:
        numbers = {name: np.array([float(getattr(self, name))]) for name in ("rate", "bias")}
        return self.trees.to_tensors() | numbers | {"features": np.array([self.features])}


Odds = Logistic | Perceptron | RandomForest | BoostedTrees
"""Log-odds of a lesion, up to a constant, given features whose first is the first detector's rarity. `ARRAYS` are the
names of its arrays in a bundle, `features` is how many it is of."""
KINDS: dict[str, type[Odds]] = {
    "logistic": Logistic,
    "network": Perceptron,
    "forest": RandomForest,
    "boosting": BoostedTrees,
}
"""What can be taught, as `--kind` and the score of a taught detector name it."""


@dataclass(frozen=True)
class Reduction:
    """Latents along their principal axes in healthy tissue, each of mean 0 and variance 1 there."""

    mean: Float[np.ndarray, " m"]
    axes: Float[np.ndarray, "m a"]

    def reduced(self, latents: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n a"]:
        """The latents of n places along the axes; 0, the mean, where a place has none (nan)."""
        return np.nan_to_num((latents - self.mean) @ self.axes)


@dataclass(frozen=True)
class Teaching:
    """What was learned, and how latents become features of it."""

    odds: Odds
    reduction: Reduction | None = None
    """None: rarities alone are features."""

    @property
    def kind(self) -> str:
        """Its name among `KINDS`."""
        return next(name for name, kind in KINDS.items() if isinstance(self.odds, kind))

    @property
    def latents(self) -> int:
        """Latents of a place that it needs."""
        return self.reduction.mean.size if self.reduction else 0

    @property
    def rarities(self) -> int:
        """Detectors whose rarities it needs."""
        return self.odds.features - (self.reduction.axes.shape[1] if self.reduction else 0)

    def log_odds(self, rarities: Float[np.ndarray, "n d"], latents: Float[np.ndarray, "n m"]) -> LogOdds:
        """The log-odds of n places, up to a constant.

        Args:
            latents: without columns where it needs none.
        """
        return self.odds.log_odds(features(rarities, latents, self.reduction))

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Plain arrays for a safetensors file."""
        reduction = {"latent_mean": self.reduction.mean, "latent_axes": self.reduction.axes} if self.reduction else {}
        return self.odds.to_tensors() | reduction

    @classmethod
    def from_tensors(cls, kind: str, tensors: Mapping[str, np.ndarray]) -> "Teaching":
        """The inverse of `to_tensors`.

        Raises:
            FormatError: an array is missing or unknown, holds what it cannot, or does not fit the others.
        """
        arrays = KINDS[kind].ARRAYS
        reduced = [name for name in ("latent_mean", "latent_axes") if name in tensors]
        if unexpected := sorted(set(tensors) ^ {*arrays, *(("latent_mean", "latent_axes") if reduced else ())}):
            raise FormatError(
                f"what {kind} was taught has {', '.join(arrays)}; {unexpected[0][:60]!r} is not as it should be"
            )
        for name, array in tensors.items():
            if array.dtype.kind not in "fi" or not np.isfinite(array).all():
                raise FormatError(f"{name} of what was taught holds numbers that are not finite")
        return cls(_odds(kind, tensors), _reduction(tensors) if reduced else None)


def features(
    rarities: Float[np.ndarray, "n d"], latents: Float[np.ndarray, "n m"], reduction: Reduction | None
) -> Features:
    """What n places are described by. Where a detector has no score (nan), the mean of the others stands for it."""
    missing = np.isnan(rarities)
    if missing.any():
        mean = np.where(missing, 0, rarities).sum(1) / np.maximum((~missing).sum(1), 1)
        rarities = np.where(missing, mean[:, None], rarities)
    rarities = rarities.astype(np.float64)
    return np.concatenate([rarities, reduction.reduced(latents.astype(np.float64))], 1) if reduction else rarities


def _odds(kind: str, tensors: Mapping[str, np.ndarray]) -> Odds:
    if kind == "logistic":
        weights, bias = tensors["weights"], tensors["bias"]
        if weights.ndim != 1 or not weights.size or bias.shape != (1,) or weights.dtype.kind != "f":
            raise FormatError("a logistic regression has a row of weights and a bias")
        return Logistic(weights, bias)
    if kind == "network":
        hidden, weights = tensors["hidden"], tensors["weights"]
        shapes = tensors["hidden_bias"].shape, weights.shape, tensors["bias"].shape
        units = hidden.shape[1] if hidden.ndim == 2 else 0
        if not 0 < units <= MOST_UNITS or not hidden.size or shapes != ((units,), (units,), (1,)):
            raise FormatError(f"a network has 1 to {MOST_UNITS:,} units, and weights and biases for as many")
        return Perceptron(hidden, tensors["hidden_bias"], weights, tensors["bias"])
    number = int(_number(tensors, "features"))
    trees = Trees.from_tensors(tensors, number)
    if kind == "forest":
        if trees.value.min() < 0 or trees.value.max() > 1:
            raise FormatError("the leaves of a forest hold shares, from 0 to 1")
        return RandomForest(trees, number, _number(tensors, "strength"))
    return BoostedTrees(trees, number, _number(tensors, "rate"), _number(tensors, "bias"))


def _reduction(tensors: Mapping[str, np.ndarray]) -> Reduction:
    mean, axes = tensors["latent_mean"], tensors["latent_axes"]
    fits = axes.ndim == 2 and mean.shape == axes.shape[:1] and 0 < mean.size <= MOST_LATENTS
    if not fits or not 0 < axes.shape[1] <= MOST_AXES:
        raise FormatError(f"latents have a mean each and 1 to {MOST_AXES} axes, not {mean.shape} and {axes.shape}")
    return Reduction(mean, axes)


def _number(tensors: Mapping[str, np.ndarray], name: str) -> float:
    if tensors[name].shape != (1,):
        raise FormatError(f"{name} of what was taught is one number")
    return float(tensors[name][0])
