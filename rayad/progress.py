"""How far training has come, as values that can be kept and taken up again."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from rayad.errors import FormatError

Row = dict[str, float]
"""What is known after an epoch (stage, epoch, train_NAME: mean loss, validation; samples that this worker learned from;
seconds, and of these seconds_data and seconds_agreement that it waited for samples and for the others) or a pass."""


@dataclass(frozen=True)
class State:
    """All that is needed to go on: named tensors, and numbers and lists that JSON can hold."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """Where training stands and what it saw on the way."""

    stage: int = 0
    started: int = 0
    """Epochs of the stages before this one."""
    epoch: int = 0
    """Epochs done, counted through all stages."""
    best_epoch: int = 0
    best_loss: float | None = None
    rows: list[Row] = field(default_factory=list)

    def after_pass(self, row: Row) -> "Progress":
        """A pass over the data is done."""
        return replace(self, rows=[*self.rows, row])

    def after_epoch(self, row: Row) -> "Progress":
        """An epoch is done: the best so far if its loss is lower than before, or nothing was validated."""
        progress = replace(self, epoch=self.epoch + 1, rows=[*self.rows, row])
        loss = row.get("validation")
        if loss is not None and self.best_loss is not None and loss >= self.best_loss:
            return progress
        return replace(progress, best_epoch=progress.epoch, best_loss=loss)

    def after_stage(self) -> "Progress":
        """A stage is done; the next one begins with its own best loss."""
        return Progress(self.stage + 1, self.epoch, self.epoch, self.epoch, None, self.rows)


def pack(model: nn.Module, best: dict[str, Tensor], optimizers: list[Optimizer], progress: Progress) -> State:
    """One state of the parameters now, the best so far, the optimizers' moments and the progress."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            named = {name: value for name, value in moments.items() if value is not None}
            tensors |= {f"optimizer.{number}.{index}.{name}": value for name, value in named.items()}
    return State(tensors, asdict(progress))


def unpack(state: State, model: nn.Module) -> tuple[Progress, dict[str, Tensor]]:
    """Put the parameters of a state into the model; returns the progress and the best parameters so far.

    Raises:
        FormatError: the tensors are those of another model.
    """
    parameters, best = _under("model.", state.tensors), _under("best.", state.tensors)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for tensors in (parameters, best):
        if {name: value.shape for name, value in tensors.items()} != shapes:
            raise FormatError("the checkpoint to go on from is of another model: names or shapes do not fit")
    model.load_state_dict(parameters)
    return Progress(**state.scalars), best


def unpack_moments(state: State, optimizers: list[Optimizer]) -> None:
    """Put the moments of a state into its stage's optimizers."""
    for number, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(f"optimizer.{number}.", state.tensors).items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
