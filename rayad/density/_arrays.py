"""What detectors of latents share that learn in one process: arrays of any shape, and standardized latents.

scikit-learn fits, its arrays are kept, torch scores: no object of another library is stored or loaded.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rayad.errors import FormatError, TrainingError
from rayad.tensors import Latents, Scores

Others = Float[Tensor, "k m"]
"""Latents of another number: those for validation, or those that were learned from."""
BUDGET = 1 << 24
"""Numbers that scoring keeps at a time."""


class Learned(nn.Module):
    """Buffers of float64 whose shapes come from learning, or from the state that is loaded.

    Loading raises FormatError for arrays whose shapes do not belong together. Latents are scored as
    (z - centre) / scale, in float64: distances of near points would lose their digits.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, variables: int, **shapes: str) -> None:
        """Nothing is learned yet.

        Args:
            shapes: of each array, a letter a dimension with blanks between: m is the number of variables, numbers are
                themselves, others are the same in all arrays; "": one number.
        """
        super().__init__()
        self.variables, self._shapes = variables, {"centre": "m", "scale": "m", **shapes}
        for name in self._shapes:
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.register_load_state_dict_pre_hook(self._take_shapes)

    def standardize(self, train: Latents, at_least: int) -> Latents:
        """Learn centre and scale of each latent, and return the standardized training latents.

        Raises:
            TrainingError: latents that are not finite, or fewer than the method needs.
        """
        if not torch.isfinite(train).all():
            raise TrainingError(f"{type(self).__name__}: training latents are not all finite numbers")
        if len(train) < at_least:
            name = type(self).__name__
            raise TrainingError(f"{name}: at least {at_least} training latents are wanted, not {len(train)}")
        self.centre = train.double().mean(0)
        self.scale = train.double().std(0, correction=0).clamp_min(1e-9)
        return self.standardized(train)

    def standardized(self, z: Latents) -> Latents:
        """Latents in standard deviations of the training latents; RuntimeError before learning."""
        if not self.centre.numel():
            raise RuntimeError(f"{type(self).__name__} has not learned anything yet")
        return (z.double() - self.centre) / self.scale

    @property
    def log_determinant(self) -> Tensor:
        """Log-determinant of the standardization, which turns a density of standardized latents into one of latents."""
        return -self.scale.log().sum()

    def keep(self, **arrays: Any) -> None:
        """Put learned arrays into their buffers."""
        for name, array in arrays.items():
            assert name in self._buffers  # the constructor names them all
            setattr(self, name, torch.as_tensor(array, dtype=torch.float64).to(self.centre.device).contiguous())

    def _take_shapes(self, _: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        sizes = {"m": self.variables}
        for name, shape in self._shapes.items():
            array = state.get(prefix + name)
            if array is None:  # it is among the missing keys
                continue
            if not _has_shape(array, shape.split(), sizes):
                raise FormatError(f"{name} has the shape {tuple(array.shape)}, not ({shape or 'one number'})")
            setattr(self, name, torch.empty_like(array, dtype=torch.float64))


def _has_shape(array: Tensor, letters: list[str], sizes: dict[str, int]) -> bool:
    """Whether an array has a dimension a letter, of the letter's size; the first that has a letter gives its size."""
    if array.ndim != len(letters):
        return False
    pairs = zip(letters, array.shape, strict=True)
    return all(size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size)) for letter, size in pairs)


def in_parts(score: Callable[[Latents], Scores], z: Latents, numbers: int) -> Scores:
    """The scores of rows, some at a time, so that the memory is bounded; in the precision of the latents.

    Args:
        numbers: that scoring one row keeps.
    """
    parts: Iterator[Latents] = iter(z.split(max(1, BUDGET // max(1, numbers))))
    return torch.cat([score(part) for part in parts]).to(z)


def squared_distances(a: Latents, b: Others) -> Tensor:
    """|a_i - b_j|^2, n k; products of float64 keep the digits of standardized latents."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
