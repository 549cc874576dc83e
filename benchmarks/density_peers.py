"""The circuits of other libraries: the same structure and parameters as one of rayad's.

Each function takes a circuit of rayad and returns a peer that holds a copy of it, in the circuit's precision. Rows are
standardized, as the leaves of the circuit see them, so that no peer pays for that. Peers are imported when they are
asked for: none is needed to read this file.

A level of a circuit keeps all left halves before all right halves; the peers keep the two halves of a region side by
side, replica by replica. `in_pairs` is the one order seen as the other.

Letters: r replicas, l leaf regions, i inputs, w variables of a region, p products, s sums, m variables, n rows.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rayad.density.leaves import GaussianLeaves
from rayad.density.spn import SPN, Config

Rows = Tensor


@dataclass(frozen=True)
class Peer:
    """A circuit of another library."""

    log_prob: Callable[[Rows], Tensor]
    em: Callable[[Rows], object] | None = None
    """Statistics and M-step; None where the library has none."""
    gradient: Callable[[Rows], object] | None = None
    """A step of Adam; for libraries without EM."""


def in_pairs(level: Tensor, replicas: int) -> Tensor:
    """A level's tensor, (l, ...), as (replicas, regions of a replica, ...), the halves of each region together."""
    depth = (len(level) // replicas).bit_length() - 1
    bits = level.unflatten(0, (*(2,) * depth, replicas))  # the lowest cut comes first
    pairs = bits.permute(*range(depth, -1, -1), *range(depth + 1, bits.ndim))
    return pairs.flatten(1, depth) if depth else pairs[:, None]


def by_variable(circuit: SPN, values: Tensor) -> Tensor:
    """Leaf parameters (l, i, w) as (m, i, r): a variable is in one leaf region of each replica."""
    config = circuit.config
    out = values.new_zeros(config.replicas, gaussian(circuit).variables + 1, config.inputs)
    for mine, scopes, theirs in zip(
        out, in_pairs(gaussian(circuit).scopes, config.replicas), in_pairs(values, config.replicas), strict=True
    ):
        mine[scopes.flatten()] = theirs.mT.flatten(0, 1)
    return out[:, :-1].permute(1, 2, 0).contiguous()


def spflow_einet(circuit: SPN) -> Peer:
    """SPFlow's Einet with einsum layers. Its EM takes a batch's own parameters; there is no step size."""
    from spflow.zoo.einet import Einet

    config = circuit.config
    with default_dtype(circuit):
        model = Einet(
            _normal(circuit),
            num_classes=config.roots,
            num_sums=config.sums,
            num_leaves=config.inputs,
            depth=config.depth,
            num_repetitions=config.replicas,
            layer_type="einsum",
        )
    return _spflow(circuit, model, lambda w: w.permute(1, 2, 0, 3, 4))  # f s r i j


def spflow_rat(circuit: SPN) -> Peer:
    """SPFlow's RatSPN with outer products."""
    from spflow.modules.ops.split import SplitMode
    from spflow.zoo.rat import RatSPN

    config = circuit.config
    with default_dtype(circuit):
        model = RatSPN(
            _normal(circuit),
            n_root_nodes=config.roots,
            n_region_nodes=config.sums,
            num_repetitions=config.replicas,
            depth=config.depth,
            outer_product=True,
            split_mode=SplitMode.interleaved(num_splits=2),
        )
    return _spflow(circuit, model, lambda w: w.flatten(3).permute(1, 3, 2, 0))  # f ij s r


def _normal(circuit: SPN) -> list:
    from spflow.modules.leaves.normal import Normal

    config = circuit.config
    return [
        Normal(list(range(gaussian(circuit).variables)), out_channels=config.inputs, num_repetitions=config.replicas)
    ]


def _spflow(circuit: SPN, model: nn.Module, order: Callable[[Tensor], Tensor]) -> Peer:
    from spflow.learn.expectation_maximization import expectation_maximization
    from spflow.modules.einsum.einsum_layer import EinsumLayer
    from spflow.modules.leaves.normal import Normal
    from spflow.modules.rat.factorize import Factorize
    from spflow.modules.sums.sum import Sum

    replicas, modules = circuit.config.replicas, list(model.modules())
    leaves = next(module for module in modules if isinstance(module, Normal))
    leaves.loc.data = by_variable(circuit, gaussian(circuit).mean)
    leaves.log_scale.data = by_variable(circuit, gaussian(circuit).variance).log() / 2
    factorize = next(module for module in modules if isinstance(module, Factorize))
    scopes = in_pairs(gaussian(circuit).scopes, replicas)  # r f w
    holds = torch.zeros(*scopes.shape[:2], gaussian(circuit).variables + 1).scatter_(2, scopes, 1)
    factorize.get_buffer("indices").copy_(holds[..., :-1].permute(2, 1, 0))
    sums = [module for module in modules if isinstance(module, EinsumLayer | Sum)]  # from the root down
    share, *weights = weights_in_pairs(circuit)
    targets = [share[None, None], *map(order, reversed(weights))]
    for module, target in zip(sums, targets, strict=True):
        module.logits.data = target.log().contiguous()
    model.eval()
    kept = {name: value.clone() for name, value in model.state_dict().items()}

    def em(x: Rows) -> None:
        """From the same parameters every time: a few full steps on one batch leave variances of zero."""
        model.load_state_dict(kept)
        expectation_maximization(model, x, max_steps=1, bias_correction=False)

    log_likelihood: Callable[[Rows], Tensor] = model.log_likelihood  # pyright: ignore[reportAssignmentType]
    return Peer(_without_gradients(lambda x: log_likelihood(x).flatten()), em)


def weights_in_pairs(circuit: SPN) -> list[Tensor]:
    """Each replica's share of the root (r), then weights (r, f, s, i, j) from the bottom up that add to one."""
    levels = [in_pairs(layer.weights, circuit.config.replicas) for layer in circuit.layers()]
    share = levels[-1].sum((1, 2, 3, 4))
    return [share, *levels[:-1], levels[-1] / share[:, None, None, None, None]]


def deeprob(circuit: SPN) -> Peer:
    """deeprob-kit's GaussianRatSpn; it has no EM."""
    from deeprob.spn.models.ratspn import GaussianRatSpn

    config, leaves = circuit.config, gaussian(circuit)
    if leaves.variables % 2**config.depth:
        raise ValueError("deeprob-kit fills regions of unequal size with variables of its own choice")
    with default_dtype(circuit):
        model = GaussianRatSpn(
            leaves.variables,
            out_classes=config.roots,
            rg_depth=config.depth,
            rg_repetitions=config.replicas,
            rg_batch=config.inputs,
            rg_sum=config.sums,
            optimize_scale=True,
            random_state=0,
        )
    pairs = partial(in_pairs, replicas=config.replicas)
    base = model.base_layer
    base.mask.copy_(pairs(leaves.scopes).flatten(0, 1))
    base.loc.data.copy_(pairs(leaves.mean).flatten(0, 1))
    base.scale.data.copy_(pairs(leaves.variance).sqrt().flatten(0, 1))
    base.distribution = torch.distributions.Normal(base.loc, base.scale, validate_args=False)
    *inner, root = [pairs(layer.weights).flatten(0, 1).flatten(2).log() for layer in circuit.layers()]
    for layer, weights in zip(model.layers[1::2], inner, strict=True):
        layer.weight.data.copy_(weights)
    model.root_layer.weight.data.copy_(root.transpose(0, 1).flatten(1))
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def gradient(x: Rows) -> None:
        optimizer.zero_grad()
        base.distribution = torch.distributions.Normal(base.loc, base.scale, validate_args=False)
        (-model(x).mean()).backward()
        optimizer.step()
        model.apply_constraints()

    return Peer(_without_gradients(lambda x: model(x).flatten()), gradient=gradient)


def cirkit(circuit: SPN) -> Peer:
    """cirkit's circuit on rayad's region graph, with plain parameters and fused layers, which its EM cannot update."""
    return Peer(_cirkit_log_prob(cirkit_model(circuit, fused=True)))


def cirkit_em(circuit: SPN) -> Peer:
    """cirkit without fused layers. The statistics of its Gaussian leaves add up from step to step; timed as it is."""
    return _cirkit_peer(cirkit_model(circuit, fused=False), cirkit_model(circuit, fused=False))


def _cirkit_peer(model: nn.Module, trained: nn.Module) -> Peer:
    from cirkit.backend.torch.em_optimizer import EM

    optimizer = EM(trained, lr=0.01, pseudocount=0.0)

    def em(x: Rows) -> None:
        optimizer.zero_grad()
        trained(x).sum().backward()
        optimizer.step()

    return Peer(_cirkit_log_prob(model), em)


def _cirkit_log_prob(model: nn.Module) -> Callable[[Rows], Tensor]:
    return _without_gradients(lambda x: model(x).flatten())


def cirkit_model(circuit: SPN, fused: bool) -> nn.Module:
    """cirkit's circuit: its layers get places for parameters, which are filled in when the layers can be told apart."""
    from cirkit.pipeline import PipelineContext
    from cirkit.symbolic.initializers import ConstantTensorInitializer
    from cirkit.symbolic.layers import GaussianLayer
    from cirkit.symbolic.parameters import Parameter, TensorParameter

    def place(shape: tuple[int, ...]) -> Parameter:
        return Parameter.from_input(TensorParameter(*shape, initializer=ConstantTensorInitializer(1.0)))

    def fill(parameter: Parameter, values: Tensor) -> None:
        parameter.output.initializer = ConstantTensorInitializer(values.numpy())

    config = circuit.config
    symbols = _cirkit_regions(circuit).build_circuit(
        input_factory=lambda scope, units: GaussianLayer(scope, units, mean_factory=place, stddev_factory=place),
        sum_product="tucker",
        sum_weight_factory=place,
        num_input_units=config.inputs,
        num_sum_units=config.sums,
        num_classes=config.roots,
    )
    share, *weights = weights_in_pairs(circuit)
    level = list(symbols.outputs)
    if config.replicas > 1:
        fill(level[0].weight, share[None])
        level = list(symbols.layer_inputs(level[0]))
    for values in reversed(weights):
        for layer, own in zip(level, values.flatten(0, 1), strict=True):
            fill(layer.weight, own.flatten(1))
        products = [product for layer in level for product in symbols.layer_inputs(layer)]
        level = [child for product in products for child in symbols.layer_inputs(product)]
    leaves = gaussian(circuit)
    tensors = [in_pairs(t, config.replicas).flatten(0, 1) for t in (leaves.scopes, leaves.mean, leaves.variance.sqrt())]
    for region, scope, mean, deviation in zip(level, *tensors, strict=True):
        for leaf in symbols.layer_inputs(region) or [region]:
            (place_of,) = (scope == next(iter(leaf.scope))).nonzero().flatten()
            fill(leaf.mean, mean[:, place_of])
            fill(leaf.stddev, deviation[:, place_of])
    with default_dtype(circuit):
        return PipelineContext(backend="torch", semiring="lse-sum", fold=True, optimize=fused).compile(symbols)


def cirkit_categorical(config: Config, variables: int, states: int) -> Peer:
    """cirkit's circuit with categorical leaves and parameters of its own, unfused for its EM."""
    from cirkit.pipeline import PipelineContext
    from cirkit.symbolic.initializers import DirichletInitializer
    from cirkit.symbolic.layers import CategoricalLayer
    from cirkit.symbolic.parameters import Parameter, TensorParameter
    from cirkit.templates.region_graph import RandomBinaryTree

    def drawn(shape: tuple[int, ...]) -> Parameter:
        return Parameter.from_input(TensorParameter(*shape, initializer=DirichletInitializer()))

    symbols = RandomBinaryTree(variables, depth=config.depth, num_repetitions=config.replicas).build_circuit(
        input_factory=lambda scope, units: CategoricalLayer(scope, units, num_categories=states, probs_factory=drawn),
        sum_product="tucker",
        sum_weight_factory=drawn,
        num_input_units=config.inputs,
        num_sum_units=config.sums,
        num_classes=config.roots,
    )
    model = PipelineContext(backend="torch", semiring="lse-sum", fold=True, optimize=False).compile(symbols)
    return _cirkit_peer(model, model)


def _cirkit_regions(circuit: SPN):
    from cirkit.templates.region_graph.graph import PartitionNode, RegionGraph, RegionNode

    if circuit.config.depth == 0:
        raise ValueError("a region graph of cirkit has one leaf region at depth 0, not one a replica")
    root = RegionNode(range(gaussian(circuit).variables))
    nodes, children = [root], {root: []}
    for replica in in_pairs(gaussian(circuit).scopes, circuit.config.replicas).tolist():
        level = [RegionNode(v for v in scope if v < gaussian(circuit).variables) for scope in replica]
        nodes += level
        while len(level) > 1:
            pairs = list(zip(level[::2], level[1::2], strict=True))
            level = [RegionNode(left.scope | right.scope) for left, right in pairs] if len(pairs) > 1 else [root]
            partitions = [PartitionNode(region.scope) for region in level]
            for region, partition, pair in zip(level, partitions, pairs, strict=True):
                children.setdefault(region, []).append(partition)
                children[partition] = list(pair)
            nodes += partitions if level == [root] else [*partitions, *level]
    return RegionGraph(nodes, children, [root])


PEERS: dict[str, Callable[[SPN], Peer]] = {
    "SPFlow Einet": spflow_einet,
    "SPFlow RatSPN": spflow_rat,
    "cirkit": cirkit,
    "cirkit (EM build)": cirkit_em,
    "deeprob-kit": deeprob,
}
"""Name -> the peer that mirrors a circuit with one root; raises what the peer raises where it cannot."""


def gaussian(circuit: SPN) -> GaussianLeaves:
    """The leaves of a circuit of numbers."""
    assert isinstance(circuit.leaves, GaussianLeaves)  # no other circuit is mirrored
    return circuit.leaves


@contextmanager
def default_dtype(circuit: SPN) -> Iterator[None]:
    """torch's default precision is the circuit's while this lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(circuit.mixing.dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _without_gradients(log_prob: Callable[[Rows], Tensor]) -> Callable[[Rows], Tensor]:
    return torch.no_grad()(log_prob)
