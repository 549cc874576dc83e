"""A vector-quantized autoencoder: a patch becomes a few codes out of a learned book.

Van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017; 64 codes of 64 numbers
and 6 residual blocks of 128 filters of Dietrichstein et al. (2022). With z_e the cells of the encoder, e_k the codes:

    k = argmin_j |z_e - e_j|^2,    z_q = e_k,
    L = mean (x - x^)^2 / v + mean |sg[z_e] - e_k|^2 + 0.25 mean |z_e - sg[e_k]|^2,

with v the variance of the training pixels, by which the authors' own program divides (else faint pictures are worth
less than the codes' distances, and all cells come to lie at one code). The decoder's gradient goes straight through
to z_e. The latents are the codes, so the density on them has
categorical leaves. "same" convolutions give 8x8 codes, the paper's; "valid" ones 5x5, with 1x1 kernels in the residual
blocks, so that the codes of a whole image contain those of every patch and are scored at once.

Four things keep the book in use. It starts where the cells are: at draws from their Gaussian, moved by a few rounds of
k-means. It may follow the cells by moving averages (their section 3.2 and appendix A.1) in the place of its part of the
loss. A code that hardly any cell chooses starts anew beside the most chosen one. And a book of which one code is
chosen nearly everywhere is an error. All of it depends on sums over batches alone, so workers agree.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rayad.errors import CollapseError, OptionError
from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import SLOPE, Padding, downwards, initialize, side_of, upwards
from rayad.options import Channels, PatchSide, Rate, Size, Within
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores

Cells = Float[Tensor, "n d ch cw"]
"""A cell is 8 px from the next."""
Numbers = Int64[Tensor, "n ch cw"]
"""Which code each cell chooses."""

DECAY = 0.99
"""Of the moving averages, a step (van den Oord et al., appendix A.1)."""
LAPLACE = 1e-5
"""Cells that every code is thought to have had, so that none divides by nothing."""
COMMITMENT = 0.25
"""Weight of the last part of the loss; any from 0.1 to 2 does as well (their section 3.2)."""
DEAD = 0.02
"""Share of the mean use of a code below which one starts anew."""
COLLAPSED = 1.5
"""Perplexity below which next to one code is in use."""
EPSILON = 1e-8
"""Least variance of pixels, for constant ones."""
ROUNDS = 3
"""Of k-means, over all patches, at the start."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the vector-quantized autoencoder."""

    width: Size = 32
    """Channels of the first convolution; the residual blocks have four times as many filters, in the paper 128."""
    codes: Annotated[int, Within(2, 65_536)] = 128
    """K: number of codes in the codebook; the paper does not state it."""
    embedding: Size = 64
    """Dimensions of a code in the codebook."""
    blocks: Annotated[int, Within(0, 1000)] = 6
    """Residual blocks of encoder and decoder."""
    book: Literal["loss", "ema"] = "loss"
    """Learning of the codes: by their term of the loss, as in the paper, or by moving averages of their cells."""
    padding: Padding = "same"
    """Padding of the convolutions: "same" gives the paper's 64 codes of 64 px, "valid" 25, which are scored whole
    images at once."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 5e-4
    """Learning rate, chosen for some thousands of patches; the paper has more patches, 20 epochs and 1e-4."""

    def __post_init__(self) -> None:
        if self.codes < 2 or self.embedding < 1 or self.blocks < 0:
            sizes = f"{self.codes} codes of {self.embedding} numbers and {self.blocks} blocks"
            raise OptionError(f"a book has at least 2 codes of 1 number, not {sizes}")
        if self.book not in ("loss", "ema"):
            raise OptionError(f"a book learns by loss or ema, not {self.book!r}")

    def build(self) -> "QuantizedAutoencoder":
        """An untrained autoencoder of this size."""
        return QuantizedAutoencoder(self)


PRESETS = {"paper": ("width=32", "padding=same", "learning_rate=1e-4", "blocks=6", "embedding=64", "book=loss")}
"""Dietrichstein et al. 2022, beside 20 epochs in batches of 64."""


class QuantizedAutoencoder(nn.Module):
    """Encoder, book of codes, decoder."""

    variance: Tensor
    """v, of the training pixels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.states = config, (config.codes,)
        self.register_buffer("variance", torch.tensor(1.0))
        self.side = side_of(config.padding, config.patch_px)
        self.latents = self.side**2
        filters, kernel = 4 * config.width, 1 if config.padding == "valid" else 3
        self.encoder = CodeEncoder(config, filters, kernel)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.embedding, filters, 1),
            *(Residual(filters, kernel) for _ in range(config.blocks)),
            *upwards(config.channels, config.width, config.padding),
        )
        self.decoder.apply(initialize)

    def encode(self, x: Patches) -> Latents:
        """The numbers of the patch's codes, row by row."""
        return self.encoder.cells(x).flatten(1)

    def reconstruct(self, x: Patches) -> Patches:
        """Each patch decoded from its codes."""
        return self.decode(self.encode(x))

    def decode(self, z: Latents) -> Patches:
        """Patches from the numbers of their codes."""
        numbers = z.long().unflatten(1, (self.side, self.side))
        return self.decoder(self.encoder.looked_up(numbers))

    def errors(self, x: Patches, z: Latents) -> Scores:
        """Of each patch the squared error, summed over pixels, of what is decoded from its codes."""
        return (x - self.decode(z)).square().flatten(1).sum(1)

    def scores(self, x: Patches) -> dict[str, Scores]:
        """The mean squared error of each patch."""
        return {"reconstruction": (x - self.reconstruct(x)).square().flatten(1).mean(1)}

    def stages(self) -> list[list[Objective | Pass]]:
        """The book's start and the training; then a count of the codes in use, which fails where one is."""
        encoder = self.encoder
        parameters = [p for p in self.parameters() if p.requires_grad]
        start = [Pass("pixels", self.pixels, self.scale), Pass("book", encoder.moments, encoder.start)]
        start += [Pass(f"book, round {i}", encoder.chosen, encoder.move) for i in range(1, ROUNDS + 1)]
        follow = Pass("use of the book", encoder.chosen, encoder.follow)
        train = Objective("vqvae", self.loss, parameters, self.config.learning_rate, then=follow)
        return [[*start, train], [Pass("perplexity", encoder.chosen, encoder.check, checks=True)]]

    def pixels(self, x: Patches) -> list[Tensor]:
        """Number of pixels, their sum and that of their squares; they add over batches."""
        flat = x.flatten().double()
        return [torch.tensor(float(len(flat))).to(flat), flat.sum(), flat.square().sum()]

    def scale(self, sums: list[Tensor]) -> Row:
        """Take v from the sums."""
        count, first, second = sums
        self.variance.copy_((second / count - (first / count).square()).clamp_min(EPSILON))
        return {"variance": float(self.variance)}

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """L of each patch; there is no noise."""
        cells = self.encoder.embed(x).to(x)  # from the lower precision of autocast
        codes = self.encoder.looked_up(self.encoder.nearest(cells.detach())).to(x)
        decoded = self.decoder(cells + (codes - cells).detach())
        loss = (x - decoded).square().flatten(1).mean(1) / self.variance
        loss = loss + COMMITMENT * (cells - codes.detach()).square().flatten(1).mean(1)
        if self.config.book == "loss":
            loss = loss + (cells.detach() - codes).square().flatten(1).mean(1)
        return loss


class CodeEncoder(nn.Module):
    """Pixels to the numbers of codes, and the book that they are of."""

    use: Tensor
    """k: moving average of how many cells of a batch choose each code."""
    total: Tensor
    """k d: moving average of their sum."""

    def __init__(self, config: Config, filters: int, kernel: int) -> None:
        super().__init__()
        self.slides, self.config = config.padding == "valid", config
        self.side = side_of(config.padding, config.patch_px)
        self.embed = nn.Sequential(
            downwards(config.channels, config.width, config.padding),
            *(Residual(filters, kernel) for _ in range(config.blocks)),
            nn.Conv2d(filters, config.embedding, 1),
        )
        self.embed.apply(initialize)
        book = torch.randn(config.codes, config.embedding)
        self.book = nn.Parameter(book, requires_grad=config.book == "loss")
        self.register_buffer("use", torch.ones(config.codes))
        self.register_buffer("total", book.clone())

    def cells(self, x: Patches) -> Cells:
        """The numbers of the codes of each cell, n 1 h w."""
        return self.nearest(self.embed(x).to(x))[:, None].to(x)

    def windows(self, cells: Cells, stride: int) -> Float[Tensor, "n m gh gw"]:
        """The codes of every window of as many cells as a patch has, such as 5x5: n 25 gh gw."""
        patches = cells[:, 0].unfold(1, self.side, stride).unfold(2, self.side, stride)  # n gh gw 5 5
        return patches.flatten(3).movedim(3, 1)

    def nearest(self, cells: Cells) -> Numbers:
        """The code nearest to each cell."""
        flat = cells.movedim(1, 3)
        return (self.book.square().sum(1) - 2 * flat @ self.book.T).argmin(3)

    def looked_up(self, numbers: Numbers) -> Float[Tensor, "n d ch cw"]:
        """The codes of these numbers."""
        return self.book[numbers].movedim(3, 1)

    def moments(self, x: Patches) -> list[Tensor]:
        """Number of cells, their sum and that of their products; they add over batches."""
        flat = self.embed(x).movedim(1, 3).flatten(0, 2).double()
        return [torch.tensor(float(len(flat))).to(flat), flat.sum(0), flat.T @ flat]

    def start(self, sums: list[Tensor]) -> Row:
        """Draw the book from the Gaussian of the cells."""
        count, first, second = sums
        mean = first / count
        covariance = second / count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        noise = torch.randn(self.book.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        drawn = mean + (noise.to(mean) * values.clamp_min(0).sqrt()) @ vectors.T
        self._put(drawn, torch.ones_like(self.use).double())
        return {"cells_deviation": float(covariance.trace().clamp_min(0).sqrt())}

    def chosen(self, x: Patches) -> list[Tensor]:
        """How many cells choose each code, and the sum of these cells; they add over batches."""
        cells = self.embed(x).to(self.book)
        numbers, flat = self.nearest(cells).flatten(), cells.movedim(1, 3).flatten(0, 2).double()
        counts = torch.bincount(numbers, minlength=len(self.book)).double()
        return [counts, torch.zeros_like(self.book, dtype=torch.float64).index_add_(0, numbers, flat)]

    def move(self, sums: list[Tensor]) -> Row:
        """A round of k-means: every code to the mean of its cells, those without cells beside the most chosen."""
        counts, totals = sums
        self._put(torch.where(counts[:, None] > 0, totals / counts[:, None].clamp_min(1), self.book.double()), counts)
        revived = self._revive()
        return {"perplexity": perplexity(counts), "revived": revived}

    def follow(self, sums: list[Tensor]) -> Row:
        """After a step: averages of use and cells move on; by "ema" the book with them; dead codes start anew."""
        counts, totals = sums
        self.use.mul_(DECAY).add_(counts.to(self.use), alpha=1 - DECAY)
        self.total.mul_(DECAY).add_(totals.to(self.total), alpha=1 - DECAY)
        if self.config.book == "ema":
            n, k = self.use.sum(), len(self.use)
            smoothed = (self.use + LAPLACE) / (n + k * LAPLACE) * n
            self.book.copy_(self.total / smoothed[:, None])
        return {"perplexity": perplexity(self.use), "revived": self._revive()}

    def check(self, sums: list[Tensor]) -> Row:
        """Perplexity over all patches; CollapseError if next to one code is chosen."""
        value = perplexity(sums[0])
        if value < COLLAPSED:
            raise CollapseError(
                f"the book has collapsed: perplexity {value:.2f} of {len(self.book)} codes; learn it with book=ema, "
                "lower the learning rate or train longer"
            )
        return {"perplexity": value}

    def _revive(self) -> float:
        """Put codes out of use beside the most used one, half of whose use they share; how many there were."""
        dead = self.use < DEAD * self.use.mean()
        number = int(dead.sum())
        if number:
            order = self.use.argsort(descending=True, stable=True)[: max(1, min(number, len(self.use) - number))]
            sources = order[torch.arange(number, device=order.device) % len(order)]
            spread = (self.book - self.book.mean(0)).square().mean().sqrt()
            noise = torch.randn(number, self.book.shape[1], generator=torch.Generator().manual_seed(number))
            book, use = self.book.double(), self.use.double()
            book[dead] = (self.book[sources] + 0.05 * spread * noise.to(self.book)).double()
            use[dead] = use.mean()
            self._put(book, use)
        return float(number)

    def _put(self, book: Tensor, use: Tensor) -> None:
        with torch.no_grad():
            self.book.copy_(book)
            self.use.copy_(use.clamp_min(LAPLACE))
            self.total.copy_(self.book * self.use[:, None])


class Residual(nn.Module):
    """x + f(x), f = activation, convolution, activation, 1x1 convolution (van den Oord et al., section 4.1)."""

    def __init__(self, filters: int, kernel: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(filters, filters, kernel, padding=kernel // 2),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(filters, filters, 1),
        )
        self.size = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Cells) -> Cells:
        return x + self.size * self.path(x)


def perplexity(counts: Tensor) -> float:
    """exp(-sum p log p): how many codes are in use, were all used alike."""
    p = counts.double() / counts.double().sum()
    return math.exp(-float(torch.xlogy(p, p).sum()))
