"""The training loop: many workers equal one, an interruption leaves no trace, failures say where."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn
from workers import Shared, in_threads

from rayad.errors import CollapseError, FormatError, OptionError, TrainingError
from rayad.fit import ALONE, COLLAPSED, Draw, Objective, Pass, Schedule, Stage, Sync, TrainingHistory, batches, fit
from rayad.models import bvae, cae
from rayad.progress import Row, State
from rayad.tensors import Patches, Scores

ONCE = Schedule(epochs=1, batch=8)


class Line(nn.Module):
    """y = a x + b on the mean of a patch, trained towards what a test wants."""

    def __init__(self, stages: Callable[["Line"], list[Stage]] | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(-1.0))
        self.register_buffer("centre", torch.zeros(()))
        self.plan = stages or (lambda line: [[line.objective()]])

    def objective(self, **options) -> Objective:
        plain = {"name": "line", "loss": self.loss, "learning_rate": 0.1, "optimizer": "sgd"}
        return Objective(**(plain | {"parameters": [self.a, self.b]} | options))

    def loss(self, x: Patches, draw: Draw) -> Scores:
        return (self.a * x.flatten(1).mean(1) + self.b).square()

    def stages(self) -> list[Stage]:
        return self.plan(self)


@dataclass
class Memory:
    """Checkpoints in memory, all of them."""

    states: list[State] = field(default_factory=list)

    def save(self, state: State) -> None:
        self.states.append(State({k: v.clone() for k, v in state.tensors.items()}, state.scalars))

    def load(self) -> State | None:
        return self.states[-1] if self.states else None


def patches(n: int, seed: int = 0) -> Patches:
    return torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, x: Patches, schedule: Schedule, sync: Sync = ALONE, **options) -> TrainingHistory:
    validation = options.pop("validation", x)
    return fit(
        model,
        lambda epoch: batches(x, schedule, epoch, sync=sync),
        lambda: batches(validation, schedule, sync=sync),
        schedule,
        sync=sync,
        **options,
    )


def built(module, **sizes) -> nn.Module:
    torch.manual_seed(0)
    return module.Config(width=4, latents=6, **sizes).build()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def furthest(model: nn.Module, other: nn.Module) -> float:
    """The largest difference of two models' parameters, by the scale of each tensor."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize(("module", "rate"), [(cae, 0.05), (bvae, 1e-5)])
@pytest.mark.parametrize("world", [2, 3])
def test_many_workers_equal_one_after_ten_steps(world, module, rate, precision, tolerance):
    """Of 77 patches in batches of 8 the tenth has 5: three workers take 1, 2 and 2 of them."""
    x, schedule = patches(77), Schedule(epochs=1, batch=8, precision=precision)
    start = built(module, optimizer="sgd", learning_rate=rate)
    one = run(alone := deepcopy(start), x, schedule)
    ours, histories = [deepcopy(start) for _ in range(world)], [one] * world

    def work(sync: Sync) -> None:
        histories[sync.rank] = run(ours[sync.rank], x, schedule, sync)

    in_threads(world, work)
    for model, history in zip(ours, histories, strict=True):
        assert furthest(model, alone) < tolerance
        assert history.rows[0]["validation"] == pytest.approx(one.rows[0]["validation"], rel=tolerance)
    assert furthest(alone, start.to(alone.decoder.head.weight)) > 1e-3


def test_a_worker_without_a_row_of_the_last_batch_takes_part():
    x, schedule = patches(9), Schedule(epochs=1, batch=8, precision="float64")
    start = built(bvae, optimizer="sgd", learning_rate=1e-5)
    ours = [deepcopy(start) for _ in range(3)]
    run(start, x, schedule)
    in_threads(3, lambda sync: run(ours[sync.rank], x, schedule, sync))
    assert max(furthest(model, start) for model in ours) < 1e-12


def test_workers_start_from_the_parameters_of_rank_0():
    models: dict[int, Line] = {}

    def work(sync: Sync) -> None:
        models[sync.rank] = Line(lambda line: [])
        models[sync.rank].a.data.fill_(sync.rank + 1)
        run(models[sync.rank], patches(4), ONCE, sync)

    in_threads(2, work)
    assert models[1].a.item() == models[0].a.item() == 1


def test_a_step_goes_down_the_gradient_of_the_mean():
    line, x = Line(), patches(8)
    run(line, x, ONCE)
    mean = x.double().flatten(1).mean(1)
    slope = 2 * (0.5 * mean - 1)  # d loss / d b; times x: d loss / d a
    assert line.b.item() == pytest.approx(-1 - 0.1 * slope.mean().item(), abs=1e-6)
    assert line.a.item() == pytest.approx(0.5 - 0.1 * (slope * mean).mean().item(), abs=1e-6)


def timeless(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.startswith("seconds")}


@pytest.mark.parametrize("module", [cae, bvae])
@pytest.mark.parametrize("parts", [2, 3, 100])
def test_a_batch_in_parts_takes_the_same_step(module, parts):
    """The noise too is that of the whole batch."""
    x, schedule = patches(20), Schedule(epochs=2, batch=8, precision="float64")
    whole, in_parts = built(module), built(module)
    run(whole, x, schedule)
    run(in_parts, x, replace(schedule, accumulate=parts))
    for name, value in values(whole).items():
        torch.testing.assert_close(values(in_parts)[name], value, rtol=1e-10, atol=1e-10)


def test_an_epoch_knows_its_samples_and_where_its_time_went():
    def slow(epoch: int) -> Iterator[Patches]:
        for part in batches(patches(8), Schedule(batch=4), epoch):
            time.sleep(0.05)
            yield part

    rows: list[Row] = []
    fit(built(cae), slow, lambda: [patches(4)], ONCE, report=rows.append)
    assert rows[0]["samples"] == 8
    assert 0.1 <= rows[0]["seconds_data"] <= rows[0]["seconds"]
    assert rows[0]["seconds_agreement"] < rows[0]["seconds"]


def interrupted(after: int) -> Callable[[Row], None]:
    def report(row: Row) -> None:
        if row.get("epoch") == after:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("module", [cae, bvae])
@pytest.mark.parametrize("after", [1, 3])
def test_going_on_after_an_interruption_changes_no_bit(after, module, precision):
    x, schedule = patches(20), Schedule(epochs=4, batch=8, precision=precision)
    whole = built(module)
    history = run(whole, x, schedule)
    checkpoints = Memory()
    with pytest.raises(KeyboardInterrupt):
        run(built(module), x, schedule, checkpoints=checkpoints, report=interrupted(after))
    torch.manual_seed(9)
    resumed = module.Config(width=4, latents=6).build()  # other random values
    again = run(resumed, x, schedule, checkpoints=checkpoints)
    for name, value in values(whole).items():
        assert torch.equal(values(resumed)[name], value), name
    for ours, theirs in zip(again.rows, history.rows, strict=True):
        assert timeless(ours) == timeless(theirs)


def test_a_finished_training_is_not_repeated():
    checkpoints, x = Memory(), patches(16)
    first = built(bvae)
    run(first, x, ONCE, checkpoints=checkpoints)
    second, rows = built(bvae), []
    run(second, x, ONCE, checkpoints=checkpoints, report=rows.append)
    assert rows == []
    assert all(torch.equal(values(second)[name], value) for name, value in values(first).items())


def test_a_checkpoint_of_another_model_is_refused():
    checkpoints = Memory()
    run(Line(), patches(8), ONCE, checkpoints=checkpoints)
    with pytest.raises(FormatError, match="another model"):
        run(built(cae), patches(8), ONCE, checkpoints=checkpoints)


def test_only_rank_0_saves():
    memories = [Memory(), Memory()]
    in_threads(2, lambda sync: run(Line(), patches(8), ONCE, sync, checkpoints=memories[sync.rank]))
    assert [len(memory.states) > 0 for memory in memories] == [True, False]


class Scripted(Line):
    """Its parameter counts the steps; its validation loss follows a script."""

    def __init__(self, script: list[float]) -> None:
        super().__init__(lambda line: [[line.objective(parameters=[line.b], learning_rate=1.0)]])
        self.b.data.fill_(0)
        self.script = script

    def loss(self, x: Patches, draw: Draw) -> Scores:
        if self.training:
            return -self.b.expand(len(x))  # its gradient is -1: b goes up by 1 a step
        return torch.full((len(x),), self.script[round(self.b.item()) - 1])


def test_training_stops_when_patience_ends_and_keeps_the_best():
    model = Scripted([5, 3, 4, 2.5, 2.5, 2.75, 1])
    history = run(model, patches(4), Schedule(epochs=9, batch=4, patience=2))
    assert [row["validation"] for row in history.rows] == [5, 3, 4, 2.5, 2.5, 2.75]
    assert model.b.item() == 4
    assert history.best["epoch"] == 4
    assert not model.training


def test_epochs_bound_the_training():
    history = run(Scripted([5, 4, 3, 2, 1]), patches(4), Schedule(epochs=3, batch=4))
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]


def test_a_loss_that_is_not_a_number_names_epoch_and_step_and_keeps_the_last_good_state():
    class Breaking(Line):
        steps = 0

        def loss(self, x: Patches, draw: Draw) -> Scores:
            self.steps += self.training
            return super().loss(x, draw) * (math.nan if self.steps == 5 else 1)

    checkpoints = Memory()
    with pytest.raises(TrainingError, match=r"line: loss nan .*epoch 2, step 2"):
        run(Breaking(), patches(24), Schedule(epochs=4, batch=8), checkpoints=checkpoints)
    state = checkpoints.load()
    assert state is not None
    assert state.scalars["epoch"] == 1
    assert all(value.isfinite().all() for value in state.tensors.values())


def test_a_gradient_that_is_not_a_number_is_found():
    class Root(Line):
        def loss(self, x: Patches, draw: Draw) -> Scores:
            return (self.a * 0).abs().sqrt().expand(len(x)) + self.b * 0

    with pytest.raises(TrainingError, match="gradient is not finite in epoch 1, step 1"):
        run(Root(), patches(8), ONCE)


def test_one_worker_without_a_number_stops_all():
    class Broken(Line):
        def loss(self, x: Patches, draw: Draw) -> Scores:
            return super().loss(x, draw) * x[:, 0, 0, 0]

    x, stopped = patches(8), []
    x[0] = math.nan

    def work(sync: Sync) -> None:
        with pytest.raises(TrainingError, match="step 1"):
            run(Broken(), x, ONCE, sync)
        stopped.append(sync.rank)

    in_threads(2, work)
    assert sorted(stopped) == [0, 1]


def test_a_validation_loss_that_is_not_a_number_ends_training():
    with pytest.raises(TrainingError, match="validation loss is inf after epoch 2"):
        run(Scripted([1, math.inf]), patches(4), Schedule(epochs=4, batch=4))


def test_no_patches_are_an_error():
    with pytest.raises(TrainingError, match="no patches to train on in epoch 1"):
        run(Line(), patches(0), ONCE)
    with pytest.raises(TrainingError, match="no patches to validate on"):
        run(Line(), patches(4), ONCE, validation=patches(0))


def test_objectives_take_turns():
    names = []

    def recorded(line: Line, name: str, repeats: int) -> Objective:
        def loss(x: Patches, draw: Draw) -> Scores:
            names.extend([name] if line.training else [])
            return line.loss(x, draw)

        return line.objective(name=name, loss=loss, repeats=repeats)

    line = Line(lambda line: [[recorded(line, "critic", 2), recorded(line, "generator", 1)]])
    history = run(line, patches(40), ONCE)
    assert names == ["critic", "critic", "generator", "critic", "critic"]
    assert {"train_critic", "train_generator"} < history.rows[0].keys()


def test_an_objective_trains_its_own_parameters_only():
    line = Line(lambda line: [[line.objective(parameters=[line.b])]])
    run(line, patches(8), ONCE)
    assert line.a.item() == 0.5
    assert line.b.item() != -1


def test_adversaries_are_not_validated_and_the_last_is_kept():
    line = Line(lambda line: [[line.objective(validates=False)]])
    history = run(line, patches(8), Schedule(epochs=3, batch=8, patience=1), validation=patches(0))
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    assert "validation" not in history.rows[0]
    assert history.best["epoch"] == 3


class Mean(nn.Module):
    """A model without parameters, which learns by one pass."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of
        self.register_buffer("mean", torch.zeros(()))

    def stages(self) -> list[Stage]:
        def finish(sums: list[Tensor]) -> Row:
            self.mean.copy_(sums[0] / sums[1])
            return {"mean": float(self.mean)}

        return [[Pass("mean", lambda x: [x.sum(), torch.tensor(float(x.numel()))], finish, self.of)]]


@pytest.mark.parametrize("of", ["training", "validation"])
def test_a_model_may_learn_by_a_pass_alone_over_either_split(of):
    splits = {"training": patches(20), "validation": patches(20) ** 2}
    model = Mean(of)
    history = run(model, splits["training"], ONCE, validation=splits["validation"])
    assert model.mean.item() == pytest.approx(splits[of].mean().item(), abs=1e-6)
    assert history.best["mean"] == model.mean.item()


def centred(line: Line) -> list[Stage]:
    def finish(sums: list[Tensor]) -> Row:
        line.centre.copy_(sums[0] / sums[1])
        return {"centre": float(line.centre)}

    def add(x: Patches) -> list[Tensor]:
        return [x.mean((1, 2, 3)).sum(), torch.tensor(float(len(x)))]

    return [[line.objective()], [Pass("centre", add, finish), line.objective()]]


def ignoring(line: Line) -> list[Stage]:
    """A last pass that finds the line to ignore what it sees."""

    def finish(sums: list[Tensor]) -> Row:
        raise CollapseError("the line ignores what it sees")

    return [[line.objective()], [Pass("check", lambda x: [x.sum()], finish, "validation")]]


def test_a_collapse_is_an_error():
    with pytest.raises(CollapseError, match="the line ignores"):
        run(Line(ignoring), patches(20), ONCE)


def test_a_rehearsal_goes_on_with_a_collapsed_model_and_its_history_says_so():
    history = run(Line(ignoring), patches(20), replace(ONCE, collapse="warning"))
    assert [COLLAPSED in row for row in history.rows] == [False, True]


@pytest.mark.parametrize("world", [1, 2])
def test_a_stage_begins_with_sums_over_the_data(world):
    x, models, histories = patches(20), [], []

    def work(sync: Sync) -> None:
        models.append(Line(centred))
        histories.append(run(models[-1], x, ONCE, sync))

    in_threads(world, work)
    for line, history in zip(models, histories, strict=True):
        assert line.centre.item() == pytest.approx(x.mean().item(), abs=1e-6)
        assert [row["stage"] for row in history.rows] == [0, 1, 1]
        assert [row.get("epoch") for row in history.rows] == [1, None, 2]
        assert history.rows[1]["centre"] == line.centre.item()


def test_a_pass_without_patches_is_an_error():
    line = Line(lambda line: [centred(line)[1]])
    with pytest.raises(TrainingError, match="no patches for centre"):
        run(line, patches(0), ONCE)


def test_noise_belongs_to_seed_epoch_and_step_and_is_the_same_in_every_validation():
    drawn: dict[bool, list[Tensor]] = {True: [], False: []}

    class Noisy(Line):
        def loss(self, x: Patches, draw: Draw) -> Scores:
            drawn[self.training].append(draw(3))
            return super().loss(x, draw)

    run(Noisy(), patches(16), Schedule(epochs=2, batch=8))
    assert all(noise.shape == (8, 3) for noise in drawn[True])
    assert len({noise.sum().item() for noise in drawn[True]}) == 4
    assert torch.equal(torch.cat(drawn[False][:2]), torch.cat(drawn[False][2:]))
    first = drawn[True][0]
    drawn[True].clear()
    run(Noisy(), patches(16), Schedule(epochs=1, batch=8, seed=1))
    assert not torch.equal(drawn[True][0], first)


def test_bfloat16_lowers_the_loss_and_keeps_float32_parameters():
    model = built(cae)
    history = run(model, patches(64), Schedule(epochs=3, batch=8, precision="bfloat16"))
    assert history.rows[-1]["validation"] < history.rows[0]["validation"]
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_threads_are_set_for_the_training_only():
    before, seen = torch.get_num_threads(), []
    run(Line(), patches(8), replace(ONCE, threads=2), report=lambda row: seen.append(torch.get_num_threads()))
    assert seen == [2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["epochs", "batch", "patience", "threads"])
def test_a_schedule_needs_positive_numbers(name):
    with pytest.raises(OptionError, match=f"{name} .* at least 1, not 0"):
        Schedule(**{name: 0})


def test_batches_shuffle_by_epoch_and_part_by_rank():
    x, schedule = torch.arange(10.0).reshape(10, 1, 1, 1), Schedule(batch=4)
    assert torch.cat(list(batches(x, schedule))).flatten().tolist() == list(range(10))
    first, second = (torch.cat(list(batches(x, schedule, epoch))).flatten().tolist() for epoch in (1, 2))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(10))
    ranks = [Shared(rank, 3, threading.Barrier(3), []) for rank in range(3)]
    parts = zip(*(batches(x, schedule, 1, sync=rank) for rank in ranks), strict=True)
    joined = [torch.cat(part).flatten().tolist() for part in parts]
    assert joined == [first[:4], first[4:8], first[8:]]
