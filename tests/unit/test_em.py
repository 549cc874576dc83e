"""Learning: workers agree, the best parameters are kept, poor settings are named, and densities are learned."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from threading import Barrier

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor
from workers import in_threads

from rayad.density.em import EM, PAPER, EMHistory, fit, full_batch, improve
from rayad.density.spn import SPN, Config
from rayad.errors import FormatError, OptionError, TrainingError
from rayad.fit import Sync
from rayad.progress import State

SMALL = Config(inputs=4, replicas=3, depth=2, sums=2, roots=2)


def clusters(number: int, seed: int = 0) -> Tensor:
    """Two narrow clusters, in all five variables at -3 or at 3."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.randint(2, (number, 1), generator=generator) * 6 - 3
    return side + torch.randn(number, 5, dtype=torch.float64, generator=generator)


class Together:
    """Workers that are threads of this process; sums are in the order of ranks."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = Barrier(world, timeout=60)
        self.given: list[list[Tensor]] = [[] for _ in range(world)]

    def sum_(self, rank: int, tensors: list[Tensor]) -> None:
        self.given[rank] = [tensor.clone() for tensor in tensors]
        self.barrier.wait()
        for tensor, parts in zip(tensors, zip(*self.given, strict=True), strict=True):
            tensor.copy_(sum(parts[1:], parts[0]))
        self.barrier.wait()


@dataclass
class Worker:
    """One of them."""

    rank: int
    together: Together

    @property
    def world(self) -> int:
        return self.together.world

    def sum_(self, tensors: list[Tensor]) -> None:
        self.together.sum_(self.rank, tensors)

    def mean_(self, tensors: list[Tensor]) -> None:
        raise AssertionError("densities only need sums")


def learned(world: int, dtype: torch.dtype, em: EM, train: Tensor) -> tuple[list[SPN], EMHistory]:
    """The densities of all workers after learning."""
    together, densities = Together(world), [SMALL.build(5).to(dtype) for _ in range(world)]

    def work(rank: int) -> EMHistory:
        validation = clusters(50, seed=1)
        shares = (rows.tensor_split(world)[rank] for rows in (train, validation))
        return fit(densities[rank], *shares, em, sync=Worker(rank, together))

    with ThreadPoolExecutor(world) as pool:
        histories = list(pool.map(work, range(world)))
    assert len({history.best["validation"] for history in histories}) == 1
    return densities, histories[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("batches", [1, 4])
def test_many_workers_learn_what_one_learns(dtype: torch.dtype, tolerance: float, batches: int):
    train = clusters(100).to(dtype)
    train[::9, 2] = float("nan")
    em = EM(epochs=3, batches=batches, step=0.3)
    (alone,), history = learned(1, dtype, em, train)
    many, _ = learned(3, dtype, em, train)
    assert len(history.rows) == 3
    for density in many:
        torch.testing.assert_close(dict(density.state_dict()), dict(alone.state_dict()), rtol=tolerance, atol=tolerance)


def test_more_workers_than_rows_of_a_batch():
    (alone,), _ = learned(1, torch.float64, EM(epochs=2, batches=5), clusters(10))
    many, _ = learned(4, torch.float64, EM(epochs=2, batches=5), clusters(10))
    torch.testing.assert_close(many[3].leaves.mean, alone.leaves.mean, rtol=0, atol=1e-12)


def codes_and_numbers(number: int) -> Tensor:
    z = clusters(number)
    z[:, 3:] = (z[:, 3:] > 0).double()
    return z


@pytest.mark.parametrize(
    ("config", "train"),
    [
        (Config(inputs=4, replicas=3, axes="principal"), clusters(200)),
        (Config(inputs=4, replicas=3, states=(0, 0, 0, 2, 2)), codes_and_numbers(200)),
        (Config(inputs=12, replicas=2), clusters(200)),
    ],
    ids=["principal axes", "numbers and codes", "dead inputs"],
)
def test_workers_of_unequal_shares_learn_what_one_learns(config: Config, train: Tensor):
    em, bounds = EM(epochs=3, batches=3, step=0.5, revive=0.5), (0, 20, 20, 200)
    densities = [config.build(5).double() for _ in range(4)]
    alone = fit(densities[3], train, train, em)

    def work(sync: Sync) -> None:
        own = train[bounds[sync.rank] : bounds[sync.rank + 1]]
        history = fit(densities[sync.rank], own, own, em, sync=sync)
        assert history.best["validation"] == pytest.approx(alone.best["validation"], rel=1e-12)

    in_threads(3, work)
    for density in densities[:3]:
        torch.testing.assert_close(dict(density.state_dict()), dict(densities[3].state_dict()))


def test_a_circuit_beats_one_gaussian_on_two_clusters():
    train, test = clusters(400), clusters(200, seed=2)
    density = SMALL.build(5).double()
    fit(density, train, clusters(100, seed=1), EM(epochs=20))
    one = multivariate_normal(train.mean(0).numpy(), train.T.cov().numpy()).logpdf(test.numpy()).mean()
    assert density.log_prob(test).mean().item() > one + 0.5


def test_the_defaults_learn_digits():
    """1,200 rows, 64 whitened pixels: above -82.1 nats (shared benchmark), so above scikit-learn's mixtures."""
    generator = np.random.default_rng(2)
    pixels = load_digits().data[generator.permutation(1797)]
    pixels = pixels + generator.random(pixels.shape)  # the counts 0 to 16 as intervals
    z = torch.from_numpy(PCA(64, whiten=True).fit(pixels[:1200]).transform(pixels)).float()
    train, validation, test = z[:1200], z[1200:1400], z[1400:]
    density = Config().build(64)
    fit(density, train, validation, EM())
    reference = GaussianMixture(50, covariance_type="diag", reg_covar=1e-3, random_state=0).fit(train.numpy())
    learned = density.log_prob(test).mean().item()
    assert learned > -82.1
    assert learned > reference.score(test.numpy()) + 2


def test_learning_stops_after_patience_and_keeps_the_best():
    """Full steps on few rows over-fit: validation falls soon, and the epochs after the best are forgotten."""
    train, validation = torch.randn(30, 8, dtype=torch.float64), torch.randn(200, 8, dtype=torch.float64)
    density, reported = Config(inputs=10, replicas=5).build(8).double(), []
    history = fit(density, train, validation, EM(epochs=60, batches=1, step=1, patience=3), report=reported.append)
    assert len(history.rows) < 60
    assert history.best["epoch"] == len(history.rows) - 3
    assert tuple(reported) == history.rows
    bits = -density.log_prob(validation).mean().item() / (8 * torch.log(torch.tensor(2.0)).item())
    assert history.best["validation"] == pytest.approx(bits, rel=1e-6)


def test_improve_goes_on_from_where_a_density_stands():
    train, validation = clusters(100), clusters(50, seed=1)
    density = SMALL.build(5).double()
    first = fit(density, train, validation, EM(epochs=3, step=0.2))
    second = improve(density, train, validation, EM(epochs=1, step=1e-6, seed=1))
    assert second.rows[0]["validation"] == pytest.approx(first.best["validation"], rel=1e-4)


def test_full_batch_learning_reports_a_falling_training_loss():
    history = fit(SMALL.build(5).double(), clusters(100), clusters(50, seed=1), full_batch(epochs=8))
    bits = [row["train"] for row in history.rows]
    assert bits == sorted(bits, reverse=True)


def test_every_epoch_visits_all_rows_once_in_a_new_order():
    seen: list[list[float]] = []

    class Watched(SPN):
        def statistics(self, z: Tensor):
            seen.append(z[:, 0].tolist())
            return super().statistics(z)

    train = torch.arange(23.0)[:, None].repeat(1, 5)
    fit(Watched(SMALL, 5), train, train, EM(epochs=2, batches=4))
    assert [len(rows) for rows in seen] == [6, 6, 6, 5] * 2
    first, second = list(chain(*seen[:4])), list(chain(*seen[4:]))
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second


def test_steps_shrink_by_the_decay():
    history = fit(SMALL.build(5), clusters(40), clusters(20), EM(epochs=3, step=0.2, decay=0.5))
    assert [row["step"] for row in history.rows] == pytest.approx([0.2, 0.2 / 1.5, 0.1])
    assert history.progress == pytest.approx(16 * (0.2 + 0.2 / 1.5 + 0.1))


def test_hardly_any_progress_is_named():
    history = fit(SMALL.build(5), clusters(128), clusters(20), PAPER)
    assert [len(history.rows), history.progress] == [50, pytest.approx(50 * 2 * 1e-4)]
    assert "the steps add up to 0.01, below 3" in history.warnings[0]
    assert not fit(SMALL.build(5), clusters(40), clusters(20), EM(epochs=4, step=0.1)).warnings


def test_missing_training_values_are_named():
    train = clusters(40)
    train[:10, 0] = float("nan")
    history = fit(SMALL.build(5), train, clusters(20), EM(epochs=4, step=0.1))
    assert history.warnings == ("5.00% of the training values are missing",)


def test_a_likelihood_that_is_not_a_number_stops_learning():
    density = SMALL.build(5)

    def poison(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            density.mixing.fill_(float("nan"))

    with pytest.raises(TrainingError, match="the log likelihood is nan in epoch 3, step 1"):
        fit(density, clusters(40), clusters(20), EM(epochs=5), report=poison)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EM(epochs=0), "epochs of expectation-maximization must be at least 1, not 0"),
        (lambda: EM(batches=0), "batches of expectation-maximization must be at least 1, not 0"),
        (lambda: EM(patience=-1), "patience of expectation-maximization must be at least 1, not -1"),
        (lambda: EM(step=0.0), r"step of expectation-maximization must be in \(0, 1\], not 0.0"),
        (lambda: EM(step=1.5), r"step of expectation-maximization must be in \(0, 1\], not 1.5"),
        (lambda: EM(revive=1.0), r"revive of expectation-maximization must be in \[0, 1\), not 1.0"),
        (lambda: EM(decay=-1.0), "decay of expectation-maximization must be at least 0, not -1.0"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], EM], message: str):
    with pytest.raises(OptionError, match=message):
        make()


def test_unusable_rows_are_refused():
    density, z = SMALL.build(5), clusters(10)
    with pytest.raises(TrainingError, match="there are no training rows"):
        fit(density, z[:0], z, EM())
    with pytest.raises(TrainingError, match="there are no validation rows"):
        fit(density, z, z[:0], EM())
    with pytest.raises(OptionError, match="built for 5 variables, not 4"):
        fit(density, z[:, :4], z[:, :4], EM())
    with pytest.raises(TrainingError, match="row 3 is not"):
        improve(density, torch.where(torch.arange(10)[:, None] == 3, float("-inf"), z), z, EM())
    with pytest.raises(TrainingError, match="row 3 is not"):
        fit(density, torch.where(torch.arange(10)[:, None] == 3, float("inf"), z), z, EM())


def test_known_labels_make_roots_classes():
    """Two classes, 150 and 50 rows, half of the labels known: roots learn one each, and mixing their shares."""
    side = (torch.arange(200) >= 150).long()
    train = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 6 * side[:, None]
    labels = torch.where(torch.arange(200) % 2 == 0, side, -1)
    density = Config(roots=2, inputs=4, replicas=3).build(2).double()
    fit(density, train, train, EM(epochs=8), labels=labels)
    assert density.mixing.tolist() == pytest.approx([0.75, 0.25], abs=0.03)
    for c in (0, 1):
        shares = density.statistics(train[side == c]).roots
        assert shares[c] / shares.sum() > 0.98


def test_a_labeled_row_visits_its_own_root_alone():
    """The likelihoods of a row with either label add up to its own."""
    density, z = SMALL.build(5).double(), clusters(4)
    density.start(z, 0)
    both = [[density.statistics(row[None], torch.tensor([c])) for c in (0, 1)] for row in z]
    for row, (one, two) in zip(z, both, strict=True):
        assert one.roots.tolist() == pytest.approx([1, 0])
        total = (one.log_likelihood.exp() + two.log_likelihood.exp()).log().item()
        assert total == pytest.approx(density.log_prob(row[None]).item(), rel=1e-12)
    unknown = density.statistics(z, -torch.ones(4).long())
    assert torch.equal(unknown.roots, density.statistics(z).roots)


def test_workers_share_the_labels_of_their_rows():
    train, labels = clusters(60), torch.arange(60) % 3 - 1
    together, densities = Together(2), [SMALL.build(5).double() for _ in range(3)]

    def work(rank: int) -> None:
        mine, roots = (rows.tensor_split(2)[rank] for rows in (train, labels))
        fit(densities[rank], mine, mine, EM(epochs=2), labels=roots, sync=Worker(rank, together))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    fit(densities[2], train, train, EM(epochs=2), labels=labels)
    torch.testing.assert_close(dict(densities[0].state_dict()), dict(densities[2].state_dict()))


def test_workers_add_the_counts_of_codes():
    train = (clusters(60) > 0).double()
    together = Together(2)
    densities = [Config(inputs=4, replicas=3, states=(2,)).build(5).double() for _ in range(3)]

    def work(rank: int) -> None:
        mine = train.tensor_split(2)[rank]
        fit(densities[rank], mine, mine, EM(epochs=2, step=0.5), sync=Worker(rank, together))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    fit(densities[2], train, train, EM(epochs=2, step=0.5))
    torch.testing.assert_close(dict(densities[1].state_dict()), dict(densities[2].state_dict()))


def test_labels_that_are_no_roots_are_refused():
    density, z = SMALL.build(5), clusters(10).float()
    density.start(z, 0)
    with pytest.raises(OptionError, match=r"label of row 4 must be a root from 0 to 1, or -1.*not 2"):
        density.statistics(z, torch.tensor([0, 1, -1, 0, 2, 0, 0, 0, 0, 0]))
    with pytest.raises(OptionError, match="10 rows have 3 labels"):
        fit(density, z, z, EM(), labels=torch.zeros(3).long())


@dataclass
class Kept:
    """Checkpoints in memory, as a file would hold them."""

    states: list[bytes]

    def save(self, state: State) -> None:
        self.states.append(save_tensors(state.tensors, {"scalars": json.dumps(state.scalars)}))

    def load(self) -> State | None:
        if not self.states:
            return None
        length = int.from_bytes(self.states[-1][:8], "little")
        metadata = json.loads(self.states[-1][8 : 8 + length])["__metadata__"]
        return State(load_tensors(self.states[-1]), json.loads(metadata["scalars"]))


@pytest.mark.parametrize("states", [(), (0, 2, 0, 0, 2)])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_an_interrupted_fit_goes_on_to_the_same_bits(stop: int, states: tuple[int, ...]):
    train, validation = clusters(60), clusters(30, seed=1)
    for z in (train, validation):
        z[:, [1, 4]] = (z[:, [1, 4]] > 0).double() if states else z[:, [1, 4]]
    config, em = Config(inputs=4, replicas=3, states=states), EM(epochs=6, step=0.5, decay=0, patience=3, revive=0.2)
    whole, again, kept = config.build(5), config.build(5), Kept([])
    expected = fit(whole, train, validation, em, checkpoints=kept)
    history = fit(again, train, validation, em, checkpoints=Kept(kept.states[:stop]))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert [row["validation"] for row in history.rows] == [row["validation"] for row in expected.rows]
    with pytest.raises(FormatError, match="another model"):
        fit(Config(inputs=5, states=states).build(5), train, validation, em, checkpoints=kept)


def test_a_dead_input_comes_alive():
    """One input far from all rows, with no weight: learning alone never visits it, revival does."""
    z = clusters(200)
    visits = {}
    for revive in (0.0, 0.05):
        density = Config(inputs=4, replicas=2).build(5).double()
        density.start(z, 0)
        density.leaves.mean[:, 2] = 50
        density.root.weights[:, :, 2] = 1e-12
        density.root.weights[..., 2] = 1e-12
        improve(density, z, z, EM(epochs=4, revive=revive))
        visits[revive] = density.statistics(z).visits[:, 2]
    assert visits[0.0].max() < 1e-6
    assert visits[0.05].min() > 0.1


def test_categorical_circuits_learn_mixtures_of_products():
    """Codes of three hidden kinds: near the likelihood of the truth, far above independent variables."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(3, 12, 6, generator=generator, dtype=torch.float64) ** 4
    theta /= theta.sum(2, keepdim=True)

    def draw(number: int) -> Tensor:
        kind = torch.randint(3, (number,), generator=generator)
        return torch.multinomial(theta[kind].flatten(0, 1), 1, generator=generator).view(number, 12).double()

    train, validation, test = draw(2000), draw(300), draw(500)
    density = Config(inputs=10, replicas=3, states=(6,)).build(12).float()
    fit(density, train, validation, EM(epochs=20))
    places = test.long().T[None].expand(3, -1, -1)
    truth = theta.gather(2, places).log().sum(1).logsumexp(0).sub(np.log(3)).mean().item()
    alone = sum(torch.log(train[:, v].long().bincount(minlength=6) / 2000)[test[:, v].long()] for v in range(12))
    learned = density.log_prob(test).mean().item()
    assert truth - 0.35 < learned <= truth + 0.05
    assert learned > alone.mean().item() + 1


def test_categorical_circuits_learn_digits():
    """1,200 rows, 64 pixels of eight levels: far above independent pixels with Laplace's prior."""
    pixels = load_digits().data[np.random.default_rng(2).permutation(1797)]
    z = torch.from_numpy(np.minimum(pixels // 2, 7)).float()
    train, validation, test = z[:1200], z[1200:1400], z[1400:]
    density = Config(inputs=20, replicas=8, states=(8,)).build(64)
    fit(density, train, validation, EM(epochs=15))
    shares = [(train[:, v].long().bincount(minlength=8) + 1) / 1208 for v in range(64)]
    alone = sum(share.log()[test[:, v].long()] for v, share in enumerate(shares)).mean().item()
    assert density.log_prob(test).mean().item() > alone + 9
