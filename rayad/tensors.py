"""The letters that tensors have, those of `rayad.arrays`, which is apart for processes that need no torch."""

from itertools import chain

from jaxtyping import Float
from torch import Tensor, nn

Patches = Float[Tensor, "n c h w"]
Latents = Float[Tensor, "n m"]
Context = Float[Tensor, "n k"]
"""What is known of n places: a column a fact."""
Scores = Float[Tensor, " n"]


def like(model: nn.Module) -> Tensor:
    """A tensor of the model's precision on its device, for ``x.to(like(model))``; a model may have buffers alone."""
    return next(tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
