"""What labels taught: scikit-learn, scipy and brute force have the same numbers; a stranger's arrays are refused."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from rayad.errors import FormatError, OptionError
from rayad.scoring import teaching
from rayad.scoring.taught import KINDS, BoostedTrees, Logistic, RandomForest, Reduction, Teaching, features
from rayad.scoring.teaching import HEALTHY, LESION, METHODS, REJECTED, UNLABELLED, Examples, FirstFeature, auc
from rayad.scoring.trees import Trees, of_estimators

LEARNED = {kind: method for kind, (method, _) in METHODS.items()}


def labels(lesions: int = 6, shift: tuple[float, ...] = (1.0, 2.0, 0.0), seed: int = 0) -> Examples:
    """Lesions of 12 places, each with 60 unlabelled ones of its image; 5 healthy images of 100 places.

    Args:
        shift: by how much each feature is higher in a lesion.
    """
    rng, parts = np.random.default_rng(seed), []

    def add(number: int, role: int, group: int, image: int, by: tuple[float, ...] | float) -> None:
        x = rng.exponential(size=(number, len(shift))) + by
        parts.append((x, *(np.full(number, value) for value in (role, group, image, image))))

    for n in range(lesions):
        add(12, LESION, n, n, shift)
        add(60, UNLABELLED, 0, n, 0.0)
    for n in range(5):
        add(100, HEALTHY, 0, 100 + n, 0.0)
    return Examples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def learned_from(examples: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    known = examples.where(examples.role != UNLABELLED)
    return known.x, known.role == LESION, known.weights


def test_a_lesion_weighs_as_much_as_another_and_healthy_places_as_all_lesions():
    small = labels(2)
    role = small.role.copy()
    role[:5] = UNLABELLED  # the first lesion has fewer places
    role[12:20] = REJECTED
    examples = Examples(small.x, role, small.group, small.image, small.patient)
    weights = examples.weights
    for lesion in (0, 1):
        assert weights[(role == LESION) & (examples.group == lesion)].sum() == pytest.approx(1)
    assert weights[role == REJECTED].sum() == pytest.approx(1)
    assert weights[role == HEALTHY].sum() == pytest.approx(2)
    assert weights[role == UNLABELLED].sum() == 0


def test_logistic_regression_has_the_least_penalized_loss_and_is_scikit_learns_without_an_offset():
    x, positive, w = learned_from(labels())
    (fitted,) = LEARNED["logistic"](x, positive, w, [0.3], 0)
    assert isinstance(fitted, Logistic)
    mean, spread = x[~positive].mean(0), x[~positive].std(0)
    rows = (x - mean) / spread

    def loss(v: np.ndarray) -> float:
        eta = x[:, 0] + rows @ v[:-1] + v[-1]
        return float(w @ np.logaddexp(0, np.where(positive, -eta, eta)) + (v[:-1] @ v[:-1]) / (2 * 0.3))

    best = minimize(loss, np.zeros(x.shape[1] + 1), tol=1e-12).x
    assert fitted.weights * spread == pytest.approx(best[:-1], abs=1e-4)
    assert fitted.log_odds(x) == pytest.approx(x[:, 0] + rows @ best[:-1] + best[-1], abs=1e-3)
    nothing_known = np.column_stack([np.zeros(len(x)), x])  # the rarity says nothing, so there is no offset
    (own,) = LEARNED["logistic"](nothing_known, positive, w, [0.3], 0)
    theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=1000).fit(rows, positive, w)
    assert own.log_odds(nothing_known) == pytest.approx(theirs.decision_function(rows), abs=1e-4)


def test_a_network_learns_what_no_line_can():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(2000, 2))
    positive = x[:, 0] * x[:, 1] > 0
    rows = np.column_stack([np.zeros(2000), x])
    w = np.full(2000, 0.02)
    (network,), (line,) = (LEARNED[kind](rows, positive, w, [100.0], 0) for kind in ("network", "logistic"))
    assert roc_auc_score(positive, network.log_odds(rows)) > 0.95
    assert roc_auc_score(positive, line.log_odds(rows)) < 0.6


def test_a_forest_is_scikit_learns():
    x, positive, w = learned_from(labels())
    theirs = RandomForestClassifier(30, max_depth=5, random_state=1).fit(x, positive, w)
    trees = teaching.trees_of_forest(theirs)
    new = np.random.default_rng(2).exponential(size=(777, 3)) * 2
    assert trees.sums(new) / 30 == pytest.approx(theirs.predict_proba(new)[:, 1], abs=1e-6)
    share = (30 * theirs.predict_proba(new)[:, 1] + 0.5) / 31
    assert RandomForest(trees, 3, 2.0).log_odds(new) == pytest.approx(new[:, 0] + 2 * np.log(share / (1 - share)))


def test_boosted_trees_are_scikit_learns_and_begin_with_the_first_detector():
    x, positive, w = learned_from(labels())
    start = FirstFeature(-1.5)
    theirs = GradientBoostingClassifier(init=start, n_estimators=20, max_depth=2, random_state=1).fit(x, positive, w)
    estimators = list(theirs.estimators_[:, 0])
    trees = of_estimators(estimators, [estimator.tree_.value[:, 0, 0] for estimator in estimators])
    new = np.random.default_rng(2).exponential(size=(777, 3))
    assert BoostedTrees(trees, 3, 0.1, -1.5).log_odds(new) == pytest.approx(theirs.decision_function(new), abs=1e-6)
    (none, some) = LEARNED["boosting"](x, positive, w, [0.0, 5.0], 0)
    assert np.ptp(none.log_odds(new) - new[:, 0]) == pytest.approx(0, abs=1e-12)
    assert np.ptp(some.log_odds(new) - new[:, 0]) > 0.1


def test_an_auc_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40).astype(float), rng.integers(0, 7, 30).astype(float)
    pairs = [(x > y) + (x == y) / 2 for x, y in itertools.product(a, b)]
    assert auc(a, b) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("kind", METHODS)
def test_what_lesions_show_is_learned_and_unlabelled_places_are_never_negative(kind):
    examples = labels(8)
    lesson = teaching.teach(kind, examples)
    assert lesson.strength > 0
    assert lesson.figures[lesson.strength] > lesson.figures[0.0] + 0.1
    new = labels(8, seed=1)
    scores, lesion = lesson.odds.log_odds(new.x), new.role == LESION
    assert auc(scores[lesion], scores[~lesion]) > auc(new.x[lesion, 0], new.x[~lesion, 0]) + 0.1
    moved = np.where((examples.role == UNLABELLED)[:, None], examples.x[::-1], examples.x)
    other = Examples(moved, *(getattr(examples, name) for name in ("role", "group", "image", "patient")))
    strengths = [lesson.strength]
    (one,), (same,) = (teaching._by_lesions(kind, e, strengths, 0) for e in (examples, other))
    assert np.array_equal(one.log_odds(new.x), same.log_odds(new.x))


@pytest.mark.parametrize("kind", METHODS)
def test_nothing_is_learned_where_the_other_scores_say_nothing_or_one_patient_is_all_there_is(kind):
    examples = labels(8, (0.0, 0.0, 0.0))
    x = examples.x * np.where(examples.role == LESION, 5, 1)[:, None] ** [1, 0, 0]
    told_by_the_first = Examples(x, examples.role, examples.group, examples.image, examples.patient)
    assert teaching.teach(kind, told_by_the_first).strength == 0
    lesson = teaching.teach(kind, labels(1))
    assert (lesson.strength, lesson.figures) == (0.0, {})
    new = labels(3, seed=2).x
    assert np.ptp(lesson.odds.log_odds(new) - new[:, 0]) == pytest.approx(0, abs=1e-9)


def test_the_least_strength_within_a_standard_error_of_the_best_is_taken():
    table = np.array([[0.5, 0.7, 0.71], [0.6, 0.9, 0.88], [0.5, 0.8, 0.86], [0.6, 0.8, 0.79]])
    assert teaching._least_as_good(table) == 1  # the best is 0.010 better on average, with an error of 0.018
    assert teaching._least_as_good(np.array([[0.5, 0.9], [0.6, 0.9]])) == 1
    assert teaching._least_as_good(np.array([[0.5, 0.9], [0.9, 0.6]])) == 0
    assert teaching._least_as_good(np.array([[0.5, 0.9]])) == 0


def test_a_rejected_finding_lowers_what_is_like_it():
    examples = labels(6, (2.0, 2.0, 0.0))
    rng = np.random.default_rng(3)
    number = 30
    x = np.column_stack([rng.exponential(size=(number, 1)) + 2, rng.exponential(size=(number, 2)) - [0, -4]])
    more = (x, *(np.full(number, value) for value in (REJECTED, 0, 50, 50)))
    columns = (examples.x, examples.role, examples.group, examples.image, examples.patient)
    both = Examples(*(np.concatenate(pair) for pair in zip(columns, more, strict=True)))
    with_it, without = (LEARNED["logistic"](*learned_from(e), [1.0], 0)[0] for e in (both, examples))
    new = np.array([[3.0, 1.0, 5.0], [3.0, 3.0, 1.0]])  # as the rejected one, and as a lesion
    difference = [odds.log_odds(new)[1] - odds.log_odds(new)[0] for odds in (with_it, without)]
    assert difference[0] > difference[1] + 1


def by_images(shift: tuple[float, ...]) -> Examples:
    """Positive images of which nobody says where the lesion is."""
    examples = labels(10, shift)
    role = np.where(examples.role == LESION, UNLABELLED, examples.role)
    return Examples(examples.x, role, np.zeros_like(role), examples.image, examples.patient)


def test_of_labels_of_images_the_highest_places_of_each_are_learned_from():
    examples = by_images((2.0, 6.0, 0.0))
    role = teaching.witnesses(examples, examples.x[:, 0])
    for image in range(10):
        places = examples.image == image
        assert (role[places] == LESION).sum() == 1  # a hundredth of 72 places, rounded up
        assert examples.x[places, 0].argmax() == (role[places] == LESION).argmax()
    lesson = teaching.teach("logistic", examples, by_images=True)
    assert lesson.strength > 0
    assert lesson.figures[lesson.strength] > lesson.figures[0.0]
    new = labels(8, (2.0, 6.0, 0.0), seed=1)
    scores, lesion = lesson.odds.log_odds(new.x), new.role == LESION
    assert auc(scores[lesion], scores[~lesion]) > auc(new.x[lesion, 0], new.x[~lesion, 0])


def test_both_classes_are_needed():
    examples = labels(3)
    for role, sentence in ((LESION, "at least one marked lesion"), (HEALTHY, "at least one healthy image")):
        with pytest.raises(OptionError, match=sentence):
            teaching.teach("logistic", examples.where(examples.role != role))
    with pytest.raises(OptionError, match="at least one image with a lesion"):
        teaching.teach("logistic", examples.where(examples.role != UNLABELLED), by_images=True)


def test_what_one_detector_lacks_the_others_stand_for():
    rarities = np.array([[1.0, np.nan, 3.0], [2.0, 4.0, 6.0]])
    assert features(rarities, np.zeros((2, 0)), None).tolist() == [[1, 2, 3], [2, 4, 6]]
    reduction = Reduction(np.array([1.0, 2.0]), np.array([[2.0], [0.0]]))
    latents = np.array([[2.0, 9.0], [np.nan, np.nan]])
    assert features(rarities, latents, reduction)[:, 3].tolist() == [2, 0]


def taught(kind: str) -> Teaching:
    (odds,) = LEARNED[kind](*learned_from(labels()), [METHODS[kind][1][1]], 0)
    return Teaching(odds)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_go_there_and_back(kind):
    learned = taught(kind)
    again = Teaching.from_tensors(kind, learned.to_tensors())
    x = labels(seed=1).x
    nothing = np.zeros((len(x), 0))
    assert np.array_equal(again.log_odds(x, nothing), learned.log_odds(x, nothing))
    assert (again.kind, again.rarities, again.latents) == (kind, 3, 0)
    reduced = Teaching(learned.odds, Reduction(np.zeros(5), np.ones((5, 2))))
    assert Teaching.from_tensors(kind, reduced.to_tensors()).rarities == 1
    assert Teaching.from_tensors(kind, reduced.to_tensors()).latents == 5


def test_what_is_none_of_them_is_refused():
    arrays = taught("logistic").to_tensors()
    for change, sentence in (
        ({"weights": np.zeros((2, 2))}, "a row of weights"),
        ({"bias": np.zeros(2)}, "a row of weights and a bias"),
        ({"weights": np.array([np.nan])}, "not finite"),
        ({"more": np.zeros(1)}, "'more' is not as it should be"),
        ({"latent_mean": np.zeros(3), "latent_axes": np.zeros((2, 2))}, "a mean each"),
        ({"latent_mean": np.zeros(3)}, "'latent_axes' is not as it should be"),
    ):
        with pytest.raises(FormatError, match=sentence):
            Teaching.from_tensors("logistic", arrays | change)
    network = taught("network").to_tensors()
    with pytest.raises(FormatError, match="units"):
        Teaching.from_tensors("network", network | {"hidden_bias": np.zeros(3)})
    forest = taught("forest").to_tensors()
    for change, sentence in (
        ({"value": forest["value"] + 2}, "shares, from 0 to 1"),
        ({"strength": np.zeros(2)}, "strength of what was taught is one number"),
        ({"features": np.array([1])}, "none of"),
    ):
        with pytest.raises(FormatError, match=sentence):
            Teaching.from_tensors("forest", forest | change)


STUMP = {
    "roots": np.array([0]),
    "feature": np.array([1, -1, -1]),
    "threshold": np.array([0.5, 0.0, 0.0]),
    "left": np.array([1, -1, -1]),
    "right": np.array([2, -1, -1]),
    "value": np.array([0.0, 3.0, 7.0]),
}


def chain(nodes: int) -> dict[str, np.ndarray]:
    """A tree as deep as it has inner nodes."""
    inner = np.arange(nodes)
    leaf = np.full(1, -1)
    return {
        "roots": np.array([0]),
        "feature": np.concatenate([np.zeros(nodes, int), leaf]),
        "threshold": np.zeros(nodes + 1),
        "left": np.concatenate([inner + 1, leaf]),
        "right": np.concatenate([np.full(nodes, nodes), leaf]),
        "value": np.zeros(nodes + 1),
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"left": np.array([0, -1, -1])}, "no later node"),  # a way that never ends
        ({"right": np.array([3, -1, -1])}, "no later node"),
        ({"left": np.array([1, 2, -1])}, "a leaf has one"),
        ({"roots": np.array([3])}, "none of 3 nodes"),
        ({"feature": np.array([2, -1, -1])}, "2 features"),
        ({"feature": np.array([-2, -1, -1])}, "2 features"),
        ({"feature": np.array([1.0, -1, -1])}, "whole numbers"),
        ({"value": np.zeros(2)}, "of one size"),
        ({"roots": np.zeros(2001, int)}, "1 to 2,000 trees"),
        (chain(70), "more than 64 nodes"),
    ],
)
def test_nodes_that_are_no_trees_are_refused(change, sentence):
    assert Trees.from_tensors(STUMP, 2).sums(np.array([[9.0, 0.5], [9.0, 0.6]])).tolist() == [3, 7]
    with pytest.raises(FormatError, match=sentence):
        Trees.from_tensors(STUMP | change, 2)
