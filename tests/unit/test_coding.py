"""Bits a pixel through a decoder and a density, against scipy and against what is known exactly."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from rayad import catalog
from rayad.density import em, spn
from rayad.models import bvae, vqvae
from rayad.scoring import coding
from rayad.scoring.coding import Channel, Decodes, Uncertain, bits_together, simple_density

D, NOISE, W = 64 * 64, 0.1, 0.05


class Linear(nn.Module):
    """x = 0.5 + W z + noise, and the encoder's mean is a (mean of x - 0.5): all in the open."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.w, self.a = nn.Parameter(torch.tensor(W, dtype=torch.float64)), a

    def encode(self, x: Tensor) -> Tensor:
        return self.a * (x.flatten(1).mean(1, keepdim=True) - 0.5)

    def errors(self, x: Tensor, z: Tensor) -> Tensor:
        return (x - 0.5 - self.w * z[:, :, None, None]).square().flatten(1).sum(1)


class Variational(Linear):
    """The same with q(z | x) = N(mean, v)."""

    def __init__(self, a: float, v: float) -> None:
        super().__init__(a)
        self.v = v

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.encode(x)
        return mean, torch.full_like(mean, math.log(self.v))


PRECISION = 1 + D * W**2 / NOISE**2
A = D * W / NOISE**2 / PRECISION


def normal(z: Tensor) -> Tensor:
    return torch.from_numpy(stats.norm.logpdf(z.numpy())).sum(1)


@pytest.fixture(scope="module")
def x() -> Tensor:
    random = np.random.default_rng(0)
    return torch.tensor(0.5 + W * random.normal(size=(300, 1, 1, 1)) + NOISE * random.normal(size=(300, 1, 64, 64)))


@pytest.fixture(scope="module")
def evidence(x) -> float:
    """Bits a pixel, exactly: x - 0.5 is normal with covariance NOISE^2 I + W^2 11'."""
    centred = x.flatten(1).numpy() - 0.5
    mean = centred.mean(1)
    along = stats.norm.logpdf(mean * D**0.5, scale=(NOISE**2 + D * W**2) ** 0.5)
    across = -0.5 * ((centred - mean[:, None]) ** 2).sum(1) / NOISE**2 - (D - 1) / 2 * np.log(2 * np.pi * NOISE**2)
    return float(-(along + across).mean() / D / np.log(2) + 16)


def test_the_bound_is_the_evidence_where_the_noise_is_the_posterior(x, evidence):
    exact = bits_together(Variational(A, 1 / PRECISION), normal, lambda: [x], lambda: [x])
    assert exact == pytest.approx(evidence, abs=1e-5)


def test_noise_that_is_too_wide_is_made_narrower(x, evidence):
    """Of 1, 1/2, 1/4, ... times it the best has half or twice the posterior's variance: its divergence is the loss."""
    bits = bits_together(Variational(A, 512 / PRECISION), normal, lambda: [x], lambda: [x])
    nats = (1 - math.log(2)) / 2, (math.log(2) - 1 / 2) / 2
    assert evidence + 0.5 * min(nats) / math.log(2) / D < bits < evidence + 2 * max(nats) / math.log(2) / D
    capped = bits_together(Variational(A, 100.0), normal, lambda: [x], lambda: [x])
    assert evidence - 1e-5 < capped < evidence + 1 / D


def test_steps_cost_at_least_the_evidence_and_hardly_more(x, evidence):
    bits = bits_together(Linear(A), normal, lambda: [x], lambda: [x])
    assert evidence < bits < evidence + 2 / D


def test_a_worse_density_costs_its_divergence_more(x):
    """With another p(z) the bits change by the difference of the cross-entropies of the means."""
    wide = lambda z: torch.from_numpy(stats.norm.logpdf(z.numpy(), scale=3)).sum(1)  # noqa: E731
    model = Variational(A, 1 / PRECISION)
    better, worse = (bits_together(model, density, lambda: [x], lambda: [x]) for density in (normal, wide))
    expected = math.log(3) - (1 - 1 / 9) / 2  # KL(N(0, 1) || N(0, 9)) in nats
    assert (worse - better) * D * math.log(2) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("width", [1.0, 0.25])
def test_steps_cost_at_least_what_their_probabilities_do(width):
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(20_000, 1)))
    channel = Channel.of_latents(Linear(1.0), z)
    generator = torch.Generator().manual_seed(0)
    sent = channel.send((z,), width, lambda *shape: torch.randn(len(z), *shape, generator=generator).double())
    step = 2 * width * float(channel.deviation)
    cells = sent.decoded.numpy()[:, 0]
    probabilities = stats.norm.cdf(cells + step / 2) - stats.norm.cdf(cells - step / 2)
    exact = -np.log(probabilities).mean()
    bound = float((sent.log_q - normal(sent.judged)).mean())
    assert exact < bound < exact + step**2 / 12
    assert (z - sent.decoded).abs().max() <= step / 2 + 1e-12


def test_a_latent_out_of_use_costs_little():
    """Its q is N(0, 1), while its mean hardly varies: the density is that of the means."""
    random = np.random.default_rng(0)
    mean = torch.from_numpy(random.normal(size=(500, 2)) * [1, 1e-3])
    channel = Channel.of_latents(Linear(1.0), mean)
    log_variance = torch.tensor([-4.0, 0.0]).double().expand(500, 2)
    sent = channel.send((mean, log_variance), 1.0, lambda *shape: torch.from_numpy(random.normal(size=(500, *shape))))
    log_prob = torch.from_numpy(stats.norm.logpdf(sent.judged[:, 1].numpy(), scale=1e-3))
    log_q = torch.from_numpy(stats.norm.logpdf(sent.judged[:, 1].numpy(), mean[:, 1].numpy(), channel.deviation[1]))
    assert float((log_q - log_prob).mean()) == pytest.approx(0.5, abs=0.1)


def test_codes_cost_exactly_their_probability():
    torch.manual_seed(0)
    model = vqvae.Config(width=4, codes=4, embedding=4, blocks=0).build().eval()
    x = torch.rand(8, 1, 64, 64)
    z = model.encode(x)
    even = lambda z: torch.full((len(z),), -z.shape[1] * math.log(4))  # noqa: E731
    error = model.errors(x, z).sum().item()
    s2 = error / x.numel()
    exact = math.log2(2 * math.pi * math.e * s2) / 2 + z.shape[1] * 2 / 64**2 + 16
    assert bits_together(model, even, lambda: [x], lambda: [x]) == pytest.approx(exact, abs=1e-6)


def test_a_simple_density_is_normal_or_counts():
    z = torch.from_numpy(np.random.default_rng(0).multivariate_normal([1, 2], [[2, 1], [1, 1]], 5_000))
    log_prob = simple_density(Linear(1.0), z)(z)
    truth = stats.multivariate_normal.logpdf(z.numpy(), z.numpy().mean(0), np.cov(z.numpy().T))
    np.testing.assert_allclose(log_prob.numpy(), truth, rtol=0.02, atol=0.02)

    class Coded:
        states = (3,)

    codes = torch.tensor([[0.0, 2.0], [0.0, 1.0], [1.0, 2.0]])
    expected = [math.log(3 / 6 * 3 / 6), math.log(2 / 6 * 2 / 6)]
    log_prob = simple_density(Coded(), codes)(torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
    np.testing.assert_allclose(log_prob.numpy(), expected)


def test_a_circuit_that_learned_the_latents_costs_less_than_noise():
    torch.manual_seed(0)
    model = bvae.Config(width=4, latents=4).build().eval()
    x = torch.rand(64, 1, 64, 64)
    z = model.encode(x).detach()
    circuit = spn.Config(inputs=3, replicas=2).build(4)
    em.fit(circuit, z, z, em.EM(epochs=5, batches=2))
    fitted = bits_together(model, circuit.log_prob, lambda: [x], lambda: [x])
    far = bits_together(model, lambda z: circuit.log_prob(z + 3), lambda: [x], lambda: [x])
    assert fitted < far


def test_the_models_that_can_be_coded():
    built = {name: catalog.configure("models", name).build() for name in catalog.names("models")}
    coded = {name for name, model in built.items() if isinstance(model, Decodes)}
    assert coded == {"bvae", "cae", "conditional_vae", "implicit_field", "pca", "vqvae"}
    assert {name for name in coded if isinstance(built[name], Uncertain)} == {"bvae", "conditional_vae"}
    for name in coded - {"implicit_field"}:
        model = built[name].eval()
        x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            truth = (x - model.reconstruct(x)).square().flatten(1).sum(1)
            torch.testing.assert_close(model.errors(x, model.encode(x)), truth)


def test_whole_batches_are_taken_until_there_are_enough():
    sizes = lambda patches: [len(x) for x in coding.taken([torch.zeros(4, 1, 2, 2)] * 3, patches)]  # noqa: E731
    assert (sizes(1), sizes(4), sizes(5), sizes(99)) == ([4], [4], [4, 4], [4, 4, 4])
