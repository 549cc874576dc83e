"""Learning from a few marked lesions, or from labels of images alone, on top of the scores of detectors.

**Classes.** Places of marked lesions are positive, places of healthy patients negative. The other places of an image
with a marked lesion are unlabelled: the reader may have marked one lesion of two, so they are never taken for negative,
and no place is learned from that nobody vouches for (of positive and unlabelled examples: Elkan and Noto, "Learning
classifiers from only positive and unlabeled data", KDD 2008; Kiryo et al., "Positive-unlabeled learning with
non-negative risk estimator", NeurIPS 2017). Here healthy patients give true negatives, so none has to be estimated. A
finding that a reader rejected is negative. A lesion weighs as much as another, whatever its size, a rejected finding as
much as a lesion, and healthy places all together as much as all lesions.

**Strength.** Everything learned is a correction of the first detector's rarity (rayad/scoring/taught.py). How far it
may go is its strength, of a few candidates of which the first is 0, the first detector as it is. Each patient's lesions
are held out once (in at most 10 groups); a lesion's figure is the mean AUC of its places against healthy places, the
unlabelled places of its image and the rejected findings, all by a function that saw no label of its patient. Against
unlabelled places an AUC orders functions as against true negatives (Menon et al., "Learning from corrupted binary
labels via class-probability estimation", ICML 2015). Taken is the least strength whose mean is within one standard
error, or 0.005, of the best (Hastie et al., *The Elements of Statistical Learning* (2009), 7.10): where a few lesions
do not show that learning helps, nothing is learned.

**Labels of images alone**: multiple-instance learning by the witnesses of each image, as MI-SVM of Andrews et al.,
"Support vector machines for multiple-instance learning", NIPS 2002. The highest hundredth of a positive image's places
are taken for its lesion, it is learned, and so again with the highest places by what was learned, until they stay. The
figure of a held-out image is the share of healthy images that its highest places exceed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import brentq, minimize
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

from rayad.errors import OptionError
from rayad.scoring.taught import BoostedTrees, Features, Logistic, LogOdds, Odds, Perceptron, RandomForest
from rayad.scoring.trees import Trees, of_estimators

HEALTHY, LESION, REJECTED, UNLABELLED = range(4)
"""What is known of a place."""
GROUPS = 10
"""Of patients, of which one at a time is held out, at most."""
WITNESSES = 0.01
"""Share of a positive image's places that are taken for its lesion."""
ROUNDS = 10
"""How often witnesses are chosen anew, at most."""
MARGIN = 0.005
"""By which a figure must be better than that of less strength."""
UNITS = 8
"""Of the network's hidden layer."""
TREES, RATE = 60, 0.1
"""Trees of a forest, and learning rate of boosted ones."""
PRECISE = {"gtol": 1e-9}
"""Of a logistic regression: the largest slope that is left."""


@dataclass(frozen=True)
class Examples:
    """Places that teach; a row each."""

    x: Features
    """The first feature is the first detector's rarity."""
    role: Int[np.ndarray, " n"]
    """`HEALTHY`, `LESION`, `REJECTED` or `UNLABELLED`."""
    group: Int[np.ndarray, " n"]
    """Number of the lesion, of the rejected finding, or else of the image."""
    image: Int[np.ndarray, " n"]
    patient: Int[np.ndarray, " n"]

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """Each lesion and each rejected finding 1, healthy places as much as all lesions, unlabelled ones 0."""
        weights = np.zeros(len(self.x))
        for role in (LESION, REJECTED):
            chosen = self.role == role
            _, group, size = np.unique(self.group[chosen], return_inverse=True, return_counts=True)
            weights[chosen] = 1 / size[group]
        healthy = self.role == HEALTHY
        weights[healthy] = weights[self.role == LESION].sum() / max(1, healthy.sum())
        return weights

    def where(self, chosen: Bool[np.ndarray, " n"]) -> "Examples":
        """Some of them."""
        return Examples(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class Lesson:
    """What was learned, and how it was chosen."""

    odds: Odds
    strength: float
    figures: dict[float, float]
    """Strength -> mean figure of the held-out lesions or images; empty where none could be held out."""


Path = Callable[[Features, Bool[np.ndarray, " n"], Float[np.ndarray, " n"], Sequence[float], int], list[Odds]]
"""Of features, which rows are positive, weights, strengths and a seed: what is learned, one a strength."""
Learn = Callable[[str, Examples, Sequence[float], int], list[Odds]]


def teach(kind: str, examples: Examples, seed: int = 0, by_images: bool = False) -> Lesson:
    """Learn from marked lesions, or from labels of images alone.

    Args:
        kind: one of `METHODS`.
        by_images: the images with `UNLABELLED` places have a lesion, nobody says where.

    Raises:
        OptionError: there is nothing positive, or no place of a healthy patient.
    """
    _require_both(examples, by_images)
    learn = _by_witnesses if by_images else _by_lesions
    strengths = METHODS[kind][1]
    table = _held_out(kind, examples, learn, seed, _figures_of_images if by_images else _figures_of_lesions)
    chosen = strengths[_least_as_good(table)]
    (odds,) = learn(kind, examples, [chosen], seed)
    means = table.mean(0) if len(table) else []
    return Lesson(odds, chosen, {s: float(mean) for s, mean in zip(strengths, means, strict=False)})


def _require_both(examples: Examples, by_images: bool) -> None:
    positive = (UNLABELLED, "image with a lesion") if by_images else (LESION, "marked lesion inside the tissue")
    for role, wanted_label in (positive, (HEALTHY, "healthy image")):
        if not (examples.role == role).any():
            raise OptionError(f"to learn from labels at least one {wanted_label} is needed, there is none")


def _by_lesions(kind: str, examples: Examples, strengths: Sequence[float], seed: int) -> list[Odds]:
    labelled = examples.where(examples.role != UNLABELLED)
    return METHODS[kind][0](labelled.x, labelled.role == LESION, labelled.weights, strengths, seed)


def _by_witnesses(kind: str, examples: Examples, strengths: Sequence[float], seed: int) -> list[Odds]:
    """By the witnesses of each image: those of the first detector, then of what was learned, until they stay."""
    learned = []
    for strength in strengths:
        odds, role = None, witnesses(examples, examples.x[:, 0])
        for _ in range(ROUNDS):
            (odds,) = _by_lesions(kind, replace(examples, role=role), [strength], seed)
            before, role = role, witnesses(examples, odds.log_odds(examples.x))
            if np.array_equal(before, role):
                break
        assert odds is not None
        learned.append(odds)
    return learned


def witnesses(examples: Examples, scores: LogOdds) -> Int[np.ndarray, " n"]:
    """The roles of places, where the highest hundredth of each image's unlabelled ones is taken for its lesion."""
    role = examples.role.copy()
    for image in np.unique(examples.image[role == UNLABELLED]):
        rows = np.nonzero((examples.image == image) & (examples.role == UNLABELLED))[0]
        highest = np.argsort(-scores[rows], kind="stable")[: ceil(WITNESSES * rows.size)]
        role[rows[highest]] = LESION
    return role


Figures = Callable[[Examples, np.ndarray, dict[int, np.ndarray]], np.ndarray]
"""Of examples, of scores s n by what did not see their patients' labels, and of scores of all healthy places by what
did not see a patient's: a figure for each lesion or image, l s."""


def _held_out(kind: str, examples: Examples, learn: Learn, seed: int, figures: Figures) -> Float[np.ndarray, "l s"]:
    """Figures of what was held out; none where the labels of one patient are all there are."""
    labelled = examples.role != HEALTHY
    patients = np.random.default_rng(seed).permutation(np.unique(examples.patient[labelled]))
    strengths = METHODS[kind][1]
    scores, of_healthy = np.full((len(strengths), len(examples.x)), np.nan), {}
    for patients_out in np.array_split(patients, min(GROUPS, len(patients))):
        out = np.isin(examples.patient, patients_out) & labelled
        rest = examples.where(~out)
        if not (rest.role == (LESION if learn is _by_lesions else UNLABELLED)).any():
            return np.zeros((0, len(strengths)))
        judged = out | ~labelled
        of_fold = np.array([odds.log_odds(examples.x[judged]) for odds in learn(kind, rest, strengths, seed)])
        scores[:, out] = of_fold[:, out[judged]]
        of_healthy |= dict.fromkeys(patients_out.tolist(), of_fold[:, ~labelled[judged]])
    return figures(examples, scores, of_healthy)


def _figures_of_lesions(
    examples: Examples, scores: np.ndarray, of_healthy: dict[int, np.ndarray]
) -> Float[np.ndarray, "l s"]:
    role, rejected = examples.role, examples.role == REJECTED
    table = []
    for lesion in np.unique(examples.group[role == LESION]):
        places = (role == LESION) & (examples.group == lesion)
        image, patient = examples.image[places][0], int(examples.patient[places][0])
        unlabelled = (role == UNLABELLED) & (examples.image == image)
        others = [of_healthy[patient], scores[:, unlabelled], scores[:, rejected]]
        table.append(
            np.mean([[auc(*pair) for pair in zip(scores[:, places], o, strict=True)] for o in others if o.size], 0)
        )
    return np.array(table)


def _figures_of_images(
    examples: Examples, scores: np.ndarray, of_healthy: dict[int, np.ndarray]
) -> Float[np.ndarray, "l s"]:
    healthy_images = examples.image[examples.role == HEALTHY]
    table = []
    for image in np.unique(examples.image[examples.role == UNLABELLED]):
        places = (examples.image == image) & (examples.role == UNLABELLED)
        healthy = of_healthy[int(examples.patient[places][0])]
        own = _highest(scores[:, places])
        others = np.stack([_highest(healthy[:, healthy_images == other]) for other in np.unique(healthy_images)], 1)
        table.append([auc(*pair) for pair in zip(own[:, None], others, strict=True)])
    return np.array(table)


def _highest(scores: Float[np.ndarray, "s n"]) -> Float[np.ndarray, " s"]:
    """The mean of the highest hundredth."""
    return np.sort(scores, 1)[:, -ceil(WITNESSES * scores.shape[1]) :].mean(1)


def auc(positive: Float[np.ndarray, " p"], negative: Float[np.ndarray, " n"]) -> float:
    """Share of pairs in which the positive scores higher, ties half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * ordered.size))


def _least_as_good(table: Float[np.ndarray, "l s"]) -> int:
    """The first strength whose mean figure is as good as the best, but for a standard error of the difference or the
    margin; 0 without two figures."""
    if len(table) < 2:
        return 0
    best = table[:, table.mean(0).argmax(), None] - table
    error = best.std(0, ddof=1) / np.sqrt(len(table))
    return int(np.argmax(best.mean(0) <= np.maximum(error, MARGIN)))


def _bias(offset: LogOdds, positive: Bool[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> float:
    """The constant by which log-odds are right in the weighted mean, by which the likelihood is highest."""
    constant: Any = brentq(lambda b: weights @ (expit(offset + b) - positive), -offset.max() - 50, 50 - offset.min())
    return float(constant)


def _scale(x: Features, positive: Bool[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature in negative places."""
    spread = x[~positive].std(0)
    return x[~positive].mean(0), np.where(spread > 0, spread, 1.0)


def _logistic(
    x: Features, positive: Bool[np.ndarray, " n"], w: Float[np.ndarray, " n"], strengths: Sequence[float], seed: int
) -> list[Odds]:
    """Logistic regression with a ridge of 1 / strength on the weights of standardized features, by Newton's method in a
    trust region."""
    mean, spread = _scale(x, positive)
    rows = np.column_stack([(x - mean) / spread, np.ones(len(x))])
    start = np.append(np.zeros(x.shape[1]), _bias(x[:, 0], positive, w))

    def loss(v: np.ndarray, ridge: np.ndarray) -> tuple[float, np.ndarray]:
        eta = x[:, 0] + rows @ v
        value = w @ (np.logaddexp(0, eta) - positive * eta) + ridge @ v**2 / 2
        return float(value), rows.T @ (w * (expit(eta) - positive)) + ridge * v

    def curvature(v: np.ndarray, ridge: np.ndarray) -> np.ndarray:
        p = expit(x[:, 0] + rows @ v)
        return (rows * (w * p * (1 - p))[:, None]).T @ rows + np.diag(ridge)

    learned: list[Odds] = []
    for strength in strengths:
        v = start
        if strength:
            ridge = np.append(np.full(x.shape[1], 1 / strength), 0.0)
            v = minimize(loss, start, (ridge,), "trust-exact", jac=True, hess=curvature, options=PRECISE).x
        weights = v[:-1] / spread
        learned.append(Logistic(weights, np.array([v[-1] - weights @ mean])))
    return learned


def _network(
    x: Features, positive: Bool[np.ndarray, " n"], w: Float[np.ndarray, " n"], strengths: Sequence[float], seed: int
) -> list[Odds]:
    """A hidden layer whose weights decay by 1 / strength, by L-BFGS from a start of which the output is 0."""
    (mean, spread), f = _scale(x, positive), x.shape[1]
    rows, offset = (x - mean) / spread, x[:, 0]
    hidden = np.random.default_rng(seed).normal(size=(f, UNITS)) / np.sqrt(f)
    bias = _bias(offset, positive, w)
    start = np.concatenate([hidden.ravel(), np.zeros(2 * UNITS), [bias]])

    def parts(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        return v[: f * UNITS].reshape(f, UNITS), v[f * UNITS : -UNITS - 1], v[-UNITS - 1 : -1], float(v[-1])

    def loss(v: np.ndarray, decay: float) -> tuple[float, np.ndarray]:
        W, a, u, b = parts(v)
        h = np.tanh(rows @ W + a)  # n u
        eta = offset + h @ u + b
        g = w * (expit(eta) - positive)
        dz = g[:, None] * u * (1 - h**2)
        gradient = np.concatenate([(rows.T @ dz + decay * W).ravel(), dz.sum(0), h.T @ g + decay * u, [g.sum()]])
        value = w @ (np.logaddexp(0, eta) - positive * eta) + decay * (np.sum(W**2) + np.sum(u**2)) / 2
        return float(value), gradient

    learned: list[Odds] = []
    for strength in strengths:
        v = start
        if strength:
            v = minimize(loss, start, (1 / strength,), "L-BFGS-B", jac=True, options={"maxiter": 200}).x
        W, a, u, b = parts(v)
        W = W / spread[:, None]
        learned.append(Perceptron(W, a - mean @ W, u, np.array([b])))
    return learned


def _forest(
    x: Features, positive: Bool[np.ndarray, " n"], w: Float[np.ndarray, " n"], strengths: Sequence[float], seed: int
) -> list[Odds]:
    """A random forest whose log-odds count as the strength says."""
    grown = RandomForestClassifier(TREES, max_depth=8, min_weight_fraction_leaf=0.01, random_state=seed)
    trees = trees_of_forest(grown.fit(x, positive, w))
    return [RandomForest(trees, x.shape[1], strength) for strength in strengths]


def trees_of_forest(forest: RandomForestClassifier) -> Trees:
    """Trees whose values are shares of the second class."""
    counts = [tree.tree_.value[:, 0] for tree in forest.estimators_]
    return of_estimators(forest.estimators_, [count[:, 1] / count.sum(1) for count in counts])


def _boosting(
    x: Features, positive: Bool[np.ndarray, " n"], w: Float[np.ndarray, " n"], strengths: Sequence[float], seed: int
) -> list[Odds]:
    """Gradient boosting from the rarity on, by as many trees as the strength says."""
    start = FirstFeature(_bias(x[:, 0], positive, w))
    stages = max(1, int(max(strengths)))
    settings = {"n_estimators": stages, "learning_rate": RATE, "max_depth": 2, "subsample": 0.5}
    grown = GradientBoostingClassifier(init=start, min_weight_fraction_leaf=0.01, random_state=seed, **settings)
    estimators = list(grown.fit(x, positive, w).estimators_[:, 0])
    values = [estimator.tree_.value[:, 0, 0] for estimator in estimators]
    learned: list[Odds] = []
    for strength in strengths:
        number = max(1, int(strength))  # one that counts nothing, where there is none
        trees = of_estimators(estimators[:number], values[:number])
        learned.append(BoostedTrees(trees, x.shape[1], RATE if strength else 0.0, start.bias))
    return learned


class FirstFeature(BaseEstimator):
    """The estimator with which boosting begins: its log-odds are the first feature and a constant."""

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias

    def fit(self, x: Features, y: np.ndarray, sample_weight: np.ndarray | None = None) -> "FirstFeature":
        """Nothing is learned."""
        return self

    def predict_proba(self, x: Features) -> Float[np.ndarray, "n 2"]:
        """Of both classes."""
        p = expit(x[:, 0].astype(np.float64) + self.bias)
        return np.column_stack([1 - p, p])


METHODS: dict[str, tuple[Path, tuple[float, ...]]] = {
    "logistic": (_logistic, (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)),
    "network": (_network, (0.0, 0.03, 0.3, 3.0)),
    "forest": (_forest, (0.0, 0.3, 1.0, 3.0)),
    "boosting": (_boosting, (0.0, 5.0, 15.0, 60.0)),
}
"""Kind -> how it is learned, and the strengths of which one is chosen."""
