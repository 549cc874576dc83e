"""The quantized autoencoder: its loss by hand, a book that learns, stays in use, and agrees over workers."""

import threading

import numpy as np
import pytest
import torch
from workers import in_threads

from rayad.density import em, spn
from rayad.errors import OptionError, TrainingError
from rayad.fit import Schedule, batches, fit
from rayad.models.vqvae import Config, perplexity

SMALL = Config(width=4, codes=12, embedding=6, blocks=1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build().double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0)).double()


def bars(n: int, seed: int) -> torch.Tensor:
    """Soft bright bars at random angles and places."""
    random = torch.Generator().manual_seed(seed)
    angle, place = 3.14 * torch.rand(n, 1, 1, generator=random), torch.rand(n, 1, 1, generator=random)
    y, z = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    return (0.2 + 0.6 * (-8 * (z * angle.cos() + y * angle.sin() - place + 0.5).square()).exp())[:, None]


def trained(config: Config, patches: torch.Tensor, epochs: int):
    torch.manual_seed(0)
    model, schedule = config.build(), Schedule(epochs=epochs, batch=8, patience=epochs)
    history = fit(model, lambda epoch: batches(patches, schedule, epoch), lambda: batches(patches, schedule), schedule)
    return model.eval(), history


def test_the_paper_has_64_codes_of_64_numbers_and_6_blocks_of_128_filters():
    model = Config().build()
    assert (model.latents, model.states) == (64, (128,))
    assert model.encoder.book.shape == (128, 64)
    convolutions = [layer for layer in model.encoder.embed.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [c.kernel_size[0] for c in convolutions] == [5, 5, 5, *[3, 1] * 6, 1]
    assert {c.out_channels for c in convolutions[3:-1]} == {128}
    valid = Config(padding="valid").build()
    assert valid.latents == 25
    assert {c.kernel_size[0] for c in valid.encoder.embed.modules() if isinstance(c, torch.nn.Conv2d)} == {5, 1}


def test_codes_are_the_nearest_ones(model, x):
    cells = model.encoder.embed(x).movedim(1, 3).flatten(0, 2)
    truth = (cells[:, None] - model.encoder.book).square().sum(2).argmin(1)
    assert torch.equal(model.encode(x).flatten().long(), truth)


@pytest.mark.parametrize("book", ["loss", "ema"])
def test_the_loss_is_its_three_parts_and_goes_straight_through(book, x):
    torch.manual_seed(0)
    model = Config(width=4, codes=12, embedding=6, blocks=1, book=book).build().double()
    cells = model.encoder.embed(x)
    codes = model.encoder.book[model.encode(x).long().unflatten(1, (8, 8))].movedim(3, 1)
    decoded_from = codes.detach().requires_grad_()
    error = (x - model.decoder(decoded_from)).square().mean((1, 2, 3))
    away = (cells - codes).square().mean((1, 2, 3))
    truth = error + (1.25 if book == "loss" else 0.25) * away
    torch.testing.assert_close(model.loss(x, lambda *shape: torch.randn(5, *shape)), truth)
    first = model.encoder.embed[0][1].weight
    (gradient,) = torch.autograd.grad(model.loss(x, lambda *shape: torch.randn(5, *shape)).sum(), first)
    (through,) = torch.autograd.grad(error.sum(), decoded_from)
    (pull,) = torch.autograd.grad((cells - codes.detach()).square().mean((1, 2, 3)).sum(), cells, retain_graph=True)
    (direct,) = torch.autograd.grad(cells, first, through + 0.25 * pull)
    torch.testing.assert_close(gradient, direct)


@pytest.mark.parametrize("book", ["loss", "ema"])
def test_training_uses_the_book_and_reports_its_perplexity(book):
    model, history = trained(
        Config(width=4, codes=12, embedding=6, blocks=1, book=book), bars(48, 0), 12 if book == "loss" else 40
    )
    assert all("perplexity" in row for row in history.rows if "epoch" in row)
    assert history.rows[-1]["perplexity"] > 3
    counts = np.bincount(model.encode(bars(48, 0)).detach().long().flatten(), minlength=12)
    assert perplexity(torch.from_numpy(counts)) == pytest.approx(history.rows[-1]["perplexity"], rel=0.05)


def test_perplexity_is_the_number_of_codes_that_are_used_alike():
    assert perplexity(torch.tensor([5.0, 5.0, 5.0, 0.0])) == pytest.approx(3)
    assert perplexity(torch.tensor([7.0, 0.0])) == pytest.approx(1)


def test_moving_averages_are_those_of_the_cells(x):
    model = Config(width=4, codes=3, embedding=6, blocks=1, book="ema").build().double()
    encoder = model.encoder
    encoder.use.fill_(100.0)
    encoder.total.copy_(100 * encoder.book)
    before, (counts, totals) = encoder.book.clone(), encoder.chosen(x)
    encoder.follow([counts, totals])
    use = 0.99 * 100 + 0.01 * counts
    assert torch.allclose(encoder.book, (0.99 * 100 * before + 0.01 * totals) / use[:, None], rtol=1e-4)


def test_a_code_that_no_cell_chooses_starts_anew_beside_one_that_many_do(model, x):
    encoder = model.encoder
    with torch.no_grad():
        encoder.book[3] = 1e3
        for _ in range(500):
            encoder.follow(encoder.chosen(x))
    assert encoder.book.abs().max() < 100
    assert (encoder.use > 0).all()


def test_a_collapsed_book_ends_training(model):
    with pytest.raises(TrainingError, match=r"collapsed: perplexity 1\.00 of 12 codes"):
        model.encoder.check([torch.tensor([50.0] + [0.0] * 11), torch.zeros(12, 6)])


@pytest.mark.parametrize("book", ["loss", "ema"])
def test_two_workers_learn_the_book_of_one(book):
    patches, models = bars(16, 0).double(), {}
    schedule = Schedule(epochs=2, batch=8, precision="float64")
    for world in (1, 2):

        def work(sync, world=world) -> None:
            with LOCK:
                torch.manual_seed(0)
                model = Config(width=4, codes=12, embedding=6, blocks=1, book=book).build()
            parts = {"train": lambda epoch: batches(patches, schedule, epoch, sync=sync)}
            fit(model, parts["train"], lambda: batches(patches, schedule, sync=sync), schedule, sync=sync)
            models[world] = model

        in_threads(world, work)
    for name, value in models[1].state_dict().items():
        torch.testing.assert_close(models[2].state_dict()[name], value, rtol=1e-7, atol=1e-9)


LOCK = threading.Lock()


def test_a_circuit_over_the_codes_tells_strange_patches():
    model, _ = trained(SMALL, bars(48, 0), 8)
    z, unseen = (model.encode(bars(n, seed)).detach() for n, seed in ((48, 0), (16, 1)))
    circuit = spn.Config(inputs=4, replicas=4, states=model.states).build(model.latents)
    em.fit(circuit, z, unseen, em.EM(epochs=15, batches=2))
    strange = model.encode(torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(2))).detach()
    assert circuit.log_prob(unseen).median() > circuit.log_prob(strange).max()


def test_sizes_that_make_no_book_are_refused():
    with pytest.raises(OptionError, match="at least 2 codes"):
        Config(codes=1)
