"""The convolutional encoder and decoder that models share: the pixels of a patch to a vector and back.

Widths and kernels of Dietrichstein et al. (2022): three 5x5 convolutions at stride 2, then one linear layer.
"valid" convolutions are unpadded, 64 -> 30 -> 13 -> 5 px: the cells of a whole image contain the cells of every
patch whose place is a multiple of 8 px, which is what makes dense scoring exact. "same" pads, 64 -> 32 -> 16 -> 8
px, as the paper does.

The side s of a patch is a multiple of 8 px, 32 at least: "same" gives s / 8 cells a side and doubles them back to s,
"valid" (s - 24) / 8 (a cell sees 29 px, the next one lies 8 px on), of which its decoder makes 8 cells + 24 = s. With
the side only the linear layers grow, by the square of the cells: "valid" 1, 25, 169 and 841 cells for 32, 64, 128 and
256 px, times 4 width times the latents.

Three choices are ours and were compared by validation loss on patches of mini-MIAS. Pixels are centred and
activations leak, which halves the loss after seven epochs. The valid decoder ends with 6x6 kernels instead of
5x5 and an output padding: padding leaves rows that only biases reach, and with them ten times the error in the
last three rows and columns of every reconstruction.
"""

import math
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rayad.errors import CollapseError, OptionError
from rayad.fit import ALONE, Sync
from rayad.options import PATCH_SIDES
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores

PATCH_PX = 64
"""Side of a patch where nothing says another."""
STRIDE = 8
"""Distance between the cells of an encoder, in px."""
HIDDEN = 24
"""What the side of a patch has more than its cells times their distance, in px, where convolutions are unpadded."""
FOLDED = 7_200
"""Cells whose taps are held at once, of 8 patches of 64 px: 1 MB, which stays in a core's cache."""
SLOPE = 0.2
"""Of the leaking activations below zero."""
MOMENTUM = 0.1
"""Share of a batch in the running statistics of batch normalization."""

Padding = Literal["valid", "same"]


class Encoder(nn.Module):
    """Convolutions to cells, and a linear head from the cells of a patch to a vector; all with biases or none."""

    def __init__(
        self,
        channels: int,
        width: int,
        outputs: int,
        padding: Padding,
        patch_px: int = PATCH_PX,
        *,
        bias: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.slides, self.side = padding == "valid", side_of(padding, patch_px)
        self.cells = downwards(channels, width, padding, bias, batch_norm)
        self.head = nn.Linear(4 * width * self.side**2, outputs, bias=bias)
        self.apply(initialize)

    def forward(self, x: Patches) -> Latents:
        return self.head(self.cells(x).flatten(1))

    def windows(self, cells: Float[Tensor, "n c ch cw"], stride: int) -> Float[Tensor, "n m gh gw"]:
        """The head on every window of cells, so many cells apart.

        One convolution a row of the window, not one for all: float32 loses digits in sums of 3,200 terms.
        """
        weight = self.head.weight.unflatten(1, (-1, self.side, self.side))  # m c 5 5
        sums = cells.new_zeros(1) if self.head.bias is None else self.head.bias[:, None, None]
        for row in range(self.side):
            line = weight[:, :, row : row + 1].contiguous(memory_format=torch.channels_last)
            strip = cells[:, :, row : cells.shape[2] - self.side + 1 + row]
            sums = sums + functional.conv2d(strip, line, stride=stride)
        return sums


class Decoder(nn.Module):
    """The encoder backwards: a vector to the pixels of a patch."""

    def __init__(
        self,
        channels: int,
        width: int,
        inputs: int,
        padding: Padding,
        patch_px: int = PATCH_PX,
        *,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        side = side_of(padding, patch_px)
        self.head = nn.Linear(inputs, 4 * width * side**2)
        up = upwards(channels, width, padding, batch_norm)
        self.pixels = nn.Sequential(nn.Unflatten(1, (4 * width, side, side)), *up)
        self.apply(initialize)

    def forward(self, z: Latents) -> Patches:
        return self.pixels(self.head(z))


def downwards(
    channels: int, width: int, padding: Padding, bias: bool = True, batch_norm: bool = False
) -> nn.Sequential:
    """Pixels to cells of 4 * width channels, 8 px apart; normalized convolutions have no biases, which would cancel."""
    layers: list[nn.Module] = [Centre()]
    for before, after in pairwise([channels, width, 2 * width, 4 * width]):
        convolution = nn.Conv2d(before, after, 5, 2, 0 if padding == "valid" else 2, bias=bias and not batch_norm)
        layers += [convolution, *_norm(after, batch_norm), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers)


def upwards(channels: int, width: int, padding: Padding, batch_norm: bool = False) -> nn.Sequential:
    """Cells of 4 * width channels to pixels."""
    layers: list[nn.Module] = []
    kernels, paddings = ((5, 6, 6), (0, 0)) if padding == "valid" else ((5, 5, 5), (2, 1))
    for kernel, (before, after) in zip(kernels, pairwise([4 * width, 2 * width, width, channels]), strict=True):
        bias = not batch_norm or after == channels
        kind = ToPixels if after == channels else nn.ConvTranspose2d
        convolution = kind(before, after, kernel, 2, *paddings, bias=bias)
        layers += [*_norm(before, batch_norm), nn.LeakyReLU(SLOPE, inplace=True), convolution]
    return nn.Sequential(*layers, Centre(-0.5))


class ToPixels(nn.ConvTranspose2d):
    """A transposed convolution to few channels; on a CPU by torch's own matrix products, several times as fast there as
    the convolutions of oneDNN that it would choose."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        is_usual = input.device.type == "cpu" and input.dtype == self.weight.dtype and output_size is None
        if not is_usual or not len(input):  # these products take no empty batch
            return super().forward(input, output_size)
        if not torch.is_grad_enabled():
            return self._folded(input)
        geometry = (self.weight.shape[2:], self.bias, self.stride, self.padding, self.output_padding)
        return torch.ops.aten.slow_conv_transpose2d(input, self.weight, *geometry)

    def _folded(self, input: Tensor) -> Tensor:
        """The same in half the time, but with slower gradients: every tap of every input, then their sums."""
        (kernel, _), (stride, _), (padding, _), (more, _) = (
            cast(tuple[int, int], pair) for pair in (self.kernel_size, self.stride, self.padding, self.output_padding)
        )
        height, width = ((side - 1) * stride + kernel - 2 * padding + more for side in input.shape[2:])
        by_tap = self.weight.flatten(1).T
        parts = [
            functional.fold(by_tap @ part.flatten(2), (height, width), kernel, padding=padding, stride=stride)
            for part in input.split(max(1, FOLDED // input[0, 0].numel()))
        ]
        image = torch.cat(parts)
        return image if self.bias is None else image + self.bias[:, None, None]


def _norm(channels: int, batch_norm: bool) -> list[nn.Module]:
    return [BatchNorm(channels, momentum=MOMENTUM)] if batch_norm else []


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization over the batch of all workers, so that more of them learn the same (Ioffe and Szegedy 2015).

    In evaluation mode it is a scale and a shift of each channel, by running statistics: cells of a whole image are
    still those of its patches.
    """

    sync: Sync = ALONE

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.sync.world == 1:
            return super().forward(input)
        x = input.to(self.weight)  # from the lower precision of autocast
        own = torch.cat([x.sum((0, 2, 3)), x.new_tensor([x.numel() / self.num_features])])
        total, count = _sum_over_workers(self.sync, own).split([self.num_features, 1])
        mean = total / count
        centred = x - mean[:, None, None]
        variance = _sum_over_workers(self.sync, centred.square().sum((0, 2, 3))) / count
        self._follow(mean, variance * count / (count - 1))
        return centred * (self.weight * (variance + self.eps).rsqrt())[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        for statistic, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert statistic is not None  # nn.BatchNorm2d has them
            statistic.lerp_(value.to(statistic), MOMENTUM)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


def _sum_over_workers(sync: Sync, x: Tensor) -> Tensor:
    """The sum over all workers of what each of them has; its gradient is such a sum too."""
    return cast(Tensor, _SumOverWorkers.apply(sync, x))


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sync: Sync, x: Tensor) -> Tensor:
        ctx.sync = sync
        return _summed(sync, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, _summed(ctx.sync, gradients[0])


def _summed(sync: Sync, x: Tensor) -> Tensor:
    total = x.clone()
    sync.sum_([total])
    return total


class Centre(nn.Module):
    """Subtract a constant; half of the full scale makes pixels in [0, 1] symmetric."""

    def __init__(self, value: float = 0.5) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Patches) -> Patches:
        return x - self.value


BOUND = 8.0
"""Of a log-variance, to both sides."""
ACTIVE = 0.01
"""A latent is active if its mean varies by more over the data (Burda et al. 2016, section 5.2)."""


def divergence(mean: Latents, log_variance: Latents) -> Scores:
    """KL(N(mean, exp(log_variance)) || N(0, I)) of each patch, in nats (Kingma and Welling 2014, appendix B)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


def bounded(log_variance: Latents) -> Latents:
    """The log-variance kept within its bounds, smoothly."""
    return BOUND * (log_variance / BOUND).tanh()


def moments(z: Latents) -> list[Tensor]:
    """Number of patches, and sums of their latents and of the squares; they add over batches."""
    z = z.double()
    return [torch.tensor(float(len(z))).to(z), z.sum(0), z.square().sum(0)]


def count_active(sums: list[Tensor], beta: float) -> Row:
    """How many latents vary over the patches that these `moments` were summed over.

    Raises:
        CollapseError: none does; the decoder has learned to ignore them.
    """
    count, first, second = sums
    active = int((second / count - (first / count).square() > ACTIVE).sum())
    if not active:
        raise CollapseError(
            f"posterior collapse: none of {len(first)} latents depends on the patch; lower beta "
            f"(now {beta}) or train longer"
        )
    return {"active_latents": active}


def patch_of(model: Any) -> int:
    """Side of the patches that a model sees, px; one whose configuration says nothing sees 64."""
    return getattr(getattr(model, "config", None), "patch_px", PATCH_PX)


def side_of(padding: str, patch_px: int = PATCH_PX) -> int:
    """Side of a patch in cells; OptionError for a padding or a side of patches that there is not."""
    if padding not in ("valid", "same"):
        raise OptionError(f"padding must be valid or same, not {padding!r}")
    if patch_px not in PATCH_SIDES:
        raise OptionError(f"patch_px must be {PATCH_SIDES}, not {patch_px}")
    return (patch_px - HIDDEN if padding == "valid" else patch_px) // STRIDE


def initialize(layer: nn.Module) -> None:
    """Draw weights that keep the variance through leaking activations (He et al. 2015, section 2.2).

    A transposed convolution gathers only 1 / stride**2 of its kernel's taps in each value.
    """
    match layer:
        case nn.ConvTranspose2d():
            taps = layer.in_channels * layer.kernel_size[0] ** 2 / layer.stride[0] ** 2
        case nn.Conv2d() | nn.Linear():
            taps = layer.weight[0].numel()
        case _:
            return
    if layer.weight.ndim == 4:  # a quarter faster on CPUs; contiguous() would leave a single channel first
        layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (1 + SLOPE**2) / taps))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
