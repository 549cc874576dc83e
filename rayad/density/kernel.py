"""The compiled kernel of circuits with Gaussian leaves: float32, on a CPU, for rows without missing values.

`kernel.cpp` beside this file is built by the machine's own C++ compiler at first use, for this very processor, and kept
in the user's cache under a name that follows from source, compiler and processor. Where there is no compiler, where
RAYAD_KERNEL is "off", and for all other rows and circuits, torch does the work: the same numbers but for rounding.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rayad.cache import cache
from rayad.density.leaves import MAX_VARIANCE, GaussianLeaves, Moments
from rayad.density.sums import MIN_WEIGHT, DenseSums, SumLayer
from rayad.tensors import Latents, Scores

T = TypeVar("T")
SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-Wno-psabi")
ROWS_A_THREAD = 256
"""At least, or a second thread costs more than it brings."""


@runtime_checkable
class Circuit(Protocol):
    """What the kernel needs to know of a circuit (rayad/density/spn.py)."""

    leaves: Any
    config: Any

    @property
    def mixing(self) -> Tensor: ...

    def layers(self) -> Iterable[SumLayer]: ...


class _Circuit(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("variables", "replicas", "depth", "width", "inputs", "sums", "roots")),
        *((name, ctypes.c_void_p) for name in ("scopes", "slopes", "constants", "weights", "log_mixing")),
    )


class _Statistics(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("log_likelihood", "roots", "mass", "raw", "visits"))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where there is no compiler, and with a warning where it fails."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        return None
    try:
        compiled = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(f"the compiled kernel could not be built, torch does its work: {reason[:300]}", stacklevel=2)
        return None
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    compiled.lanes.restype = ctypes.c_int32
    for function in (compiled.log_prob, compiled.statistics, compiled.pack_leaves):
        function.restype = ctypes.c_int32
    for function in (compiled.log_prob, compiled.statistics):
        function.argtypes = [address, address, size, address]
    compiled.pack_leaves.argtypes = [*[address] * 3, *[size] * 4, *[address] * 2]
    compiled.leaf_moments.argtypes = [*[address] * 4, *[size] * 4, *[address] * 3]
    compiled.leaf_update.argtypes = [*[address] * 5, size, *[number] * 5]
    compiled.sum_update.argtypes = [*[address] * 2, *[size] * 2, *[ctypes.c_float] * 4]
    return compiled


def _built(compiler: str) -> Path:
    """The shared library, compiled unless it is there; two that build it at once do not disturb each other."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    processor = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    inputs = "\n".join([SOURCE.read_text(), *FLAGS, version, platform.machine(), *processor])
    target = cache() / f"kernel-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            built = Path(folder) / "kernel.so"
            subprocess.run(
                [compiler, *FLAGS, "-o", str(built), str(SOURCE)], capture_output=True, text=True, check=True
            )
            built.replace(target)
    return target


_on: ContextVar[bool] = ContextVar("kernel", default=os.environ.get("RAYAD_KERNEL") != "off")


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Let torch do the work, or the kernel where it can, in this block."""
    before = _on.set(on)
    try:
        yield
    finally:
        _on.reset(before)


def packed(circuit: Circuit) -> "Packed | None":
    """The circuit as the kernel takes it, or None where torch has to do the work."""
    dense = all(isinstance(layer, DenseSums) for layer in circuit.layers())
    if not dense or not isinstance(circuit.leaves, GaussianLeaves):
        return None
    parameters = [circuit.leaves.mean, circuit.leaves.variance, circuit.mixing, *(y.weights for y in circuit.layers())]
    fits = all(p.dtype == torch.float32 and p.device.type == "cpu" and p.is_contiguous() for p in parameters)
    compiled = library() if fits and _on.get() else None
    if compiled is None:
        return None
    if any(p.is_inference() for p in parameters):  # torch does not count their changes
        return Packed(circuit, compiled)
    state = tuple((p.data_ptr(), p._version) for p in parameters)
    cached = _packed.get(circuit)
    if cached and cached[0] == state:
        return cached[1]
    _packed[circuit] = state, Packed(circuit, compiled)
    return _packed[circuit][1]


_packed: WeakKeyDictionary[Circuit, tuple[tuple, "Packed"]] = WeakKeyDictionary()
"""Circuit -> the state of its parameters, and the same in the kernel's order."""


def update(leaves: Any, moments: Any, step: float, prior: Any, inertia: float) -> bool:
    """The M-step of Gaussian leaves in one pass, as `GaussianLeaves.update`; False where torch has to do it."""
    compiled = library() if isinstance(leaves, GaussianLeaves) and _on.get() else None
    if compiled is None or leaves.mean.dtype != torch.float32 or leaves.mean.device.type != "cpu":
        return False
    statistics = [t.to(torch.float64).contiguous() for t in moments.tensors()]
    values = [leaves.mean, leaves.variance]
    addresses = [t.data_ptr() for t in (*values, *statistics)]
    bounds = leaves.min_variance, MAX_VARIANCE
    compiled.leaf_update(*addresses, leaves.mean.numel(), step, prior, inertia, *bounds)
    torch.autograd.graph.increment_version(values)
    return True


def update_sums(layer: SumLayer, visits: Sequence[Tensor], step: float, prior: float, inertia: float) -> bool:
    """The M-step of sums in one pass, as `SumLayer.update`; False where torch has to do it."""
    if not isinstance(layer, DenseSums) or not _on.get():
        return False
    weights, compiled = layer.weights, library()
    together = layer.own == (2, 3) or weights.shape[1] == 1  # the weights of one of many roots do not lie side by side
    if compiled is None or not together or weights.dtype != torch.float32 or weights.device.type != "cpu":
        return False
    counts, size = visits[0].to(weights).contiguous(), math.prod(weights.shape[axis] for axis in layer.own)
    sizes = weights.numel() // size, size
    shares = step, prior / weights.numel(), inertia, MIN_WEIGHT
    compiled.sum_update(weights.data_ptr(), counts.data_ptr(), *sizes, *shares)
    torch.autograd.graph.increment_version([weights])
    return True


class Packed:
    """A circuit's parameters in the kernel's order: of its state, and to be made anew for the next."""

    def __init__(self, circuit: Circuit, compiled: ctypes.CDLL) -> None:
        self.compiled = compiled
        leaves, config = circuit.leaves, circuit.config
        assert isinstance(leaves, GaussianLeaves)  # packed() saw to it
        self.leaves = leaves
        self.weights = [layer.weights for layer in circuit.layers()]
        self.scopes = leaves.scopes.int()
        regions, inputs, width = leaves.mean.shape
        self.slopes = leaves.mean.new_empty(regions, inputs, 2 * width)
        self.constants = leaves.mean.new_empty(regions, inputs)
        _checked(compiled.pack_leaves(*self._leaves(), self.slopes.data_ptr(), self.constants.data_ptr()))
        self.log_mixing = circuit.mixing.log()
        self.table = _addresses(self.weights)
        self.sizes = _Circuit(
            leaves.variables,
            *(config.replicas, config.depth, width, config.inputs, config.sums, config.roots),
            *(t.data_ptr() for t in (self.scopes, self.slopes, self.constants)),
            ctypes.addressof(self.table),
            self.log_mixing.data_ptr(),
        )

    def log_prob(self, x: Latents) -> Scores:
        """log p of standardized rows, in nats."""
        out = x.new_empty(len(x))
        self._shared(x, lambda first, part: self._run(self.compiled.log_prob, part, out[first:].data_ptr()))
        return out

    def statistics(self, x: Latents) -> tuple[Tensor, Tensor, Moments, list[Tensor]]:
        """The sums of the passes over standardized rows, as `spn.Sums` has them."""
        parts = self._shared(x, lambda first, part: self._sums(part))
        lp, roots, mass, raw, *visits = (functools.reduce(torch.add, values) for values in zip(*parts, strict=True))
        moments = Moments(*(torch.empty_like(self.leaves.mean, dtype=torch.float64) for _ in range(3)))
        mean, _, *sizes = self._leaves()
        pointers = [t.data_ptr() for t in moments.tensors()]
        self.compiled.leaf_moments(mean, mass.data_ptr(), raw.data_ptr(), *sizes, *pointers)
        return lp, roots.to(x), moments, visits

    def _sums(self, x: Latents) -> list[Tensor]:
        """Log likelihood, visits of roots, mass and raw moments of leaves, visits of weights: all in its order."""
        regions, inputs, features = self.slopes.shape
        half = self.compiled.lanes() // 2
        whole = -(-inputs // half) * half  # vectors of float64
        shapes = (), self.log_mixing.shape, (regions, whole), (regions, features, whole)
        lp, roots, mass, raw = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        visits = [torch.zeros_like(weights) for weights in self.weights]
        table = _addresses(visits)
        statistics = _Statistics(*(t.data_ptr() for t in (lp, roots, mass, raw)), ctypes.addressof(table))
        self._run(self.compiled.statistics, x, ctypes.addressof(statistics))
        return [lp, roots, mass, raw, *visits]

    def _leaves(self) -> list[int]:
        """The leaves' parameters and sizes, as the kernel's functions take them."""
        leaves = self.leaves
        regions, inputs, width = leaves.mean.shape
        addresses = [t.data_ptr() for t in (leaves.mean, leaves.variance, self.scopes)]
        return [*addresses, leaves.variables, regions, inputs, width]

    def _shared(self, x: Latents, work: Callable[[int, Latents], T]) -> list[T]:
        """Do the work on the rows, shared by torch's threads; ctypes lets go of the interpreter meanwhile."""
        threads = max(1, min(torch.get_num_threads(), len(x) // ROWS_A_THREAD))
        parts = x.contiguous().tensor_split(threads)
        firsts = [sum(map(len, parts[:k])) for k in range(threads)]
        if threads == 1:
            return [work(0, parts[0])]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, firsts, parts))

    def _run(self, function: Callable[..., int], x: Latents, out: int) -> None:
        _checked(function(ctypes.addressof(self.sizes), x.data_ptr(), len(x), out))


def _checked(failed: int) -> None:
    if failed:
        raise MemoryError("there is no memory for a block of rows of the circuit")


def _addresses(tensors: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
