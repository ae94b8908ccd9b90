"""Skip connections of blocks that no family knows, found and scaled by tracing the block's own forward pass."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from timm.layers.drop import DropPath
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from mi_audit.core.errors import ConfigError
from mi_audit.nn.modes import evaluating
from mi_audit.nn.skips_joining import WEAK, Add, Handler, Scaling, carried, note
from mi_audit.nn.skips_reading import STATE, Join, between, joins, projection_of, refusal, trace, weights


def handler(block: nn.Module) -> Handler | None:
    """How to scale the skip connections of `block`, named by their nodes in its graph; None when it has none.

    Raises:
        ConfigError: It cannot be traced, or a skip connection has two readings or lies in a child's forward.
    """
    if not weights(block) or not any(weights(child) for child in block.children()):
        return None
    graphs = {training: trace(block, training=training) for training in (False, True)}
    read = {training: tuple(joins(block, graph)) for training, graph in graphs.items()}
    found = {join.name: Add(join.kind, projection_of(join)) for join in read[False]}
    if found != {join.name: Add(join.kind, projection_of(join)) for join in read[True]}:
        raise refusal(block, "others in training than in evaluation")
    if not found:
        _refuse_hidden(block)
        return None
    for training, own in read.items():
        for join in own:
            _rewrite(block, graphs[training], join)
    return Handler(_scaled(block, graphs), lambda _: found)


@torch.no_grad()
def check(net: nn.Module, names: Sequence[str], example: Tensor) -> None:
    """Run stock and traced blocks, with factors of 1, on what they get in `net`.

    Args:
        net: Not changed.
        names: Dotted names of the blocks that `handler` is for.
        example: Input of `net`.

    Raises:
        ConfigError: They differ in a bit, or a block gets more than its input.
    """
    for name, features in _inputs(net, names, example).items():
        stock = net.get_submodule(name)
        traced, found = copy.deepcopy(stock), handler(stock)
        if found is None:
            raise ConfigError(f"expected a block with a skip connection, got {name} without; name another")
        adds = found.adds(stock)
        traced.__class__ = found.scaled
        setattr(traced, STATE, Scaling(found, adds, dict.fromkeys(adds, 1.0), {}))
        for training in (False, True):
            outputs = []
            for block in (copy.deepcopy(stock), traced):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    outputs.append(block.train(training)(features.clone()))
            if not torch.equal(*outputs):
                raise refusal(stock, "a traced forward that computes something else")


def _inputs(net: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, Tensor]:
    taken: dict[str, Tensor] = {}

    def note(name: str, block: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        _, *others = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
        if others or not arguments or not isinstance(arguments[0], Tensor):
            raise refusal(block, "one that takes more than one tensor")
        taken[name] = arguments[0].clone()

    hooks = [net.get_submodule(n).register_forward_pre_hook(partial(note, n), with_kwargs=True) for n in names]
    try:
        with evaluating(net):
            net(example)
    finally:
        for hook in hooks:
            hook.remove()
    return taken


def _refuse_hidden(block: nn.Module) -> None:
    """A block whose children have skip connections is not one without."""
    for name, child in block.named_children():
        own = type(child).__module__.startswith("torch.nn")
        if not own and handler(child) is not None:
            raise refusal(block, f"one whose skip connection is in its child {name}")


def _rewrite(block: nn.Module, graph: fx.Graph, join: Join) -> None:
    """Let the shortcut and the stochastic depth of the branches go by the factor of the block's state."""
    with graph.inserting_before(graph.find_nodes(op="placeholder")[0].next):
        state = graph.create_node("get_attr", STATE)
    skip, target = join.skip, projection_of(join)
    other = next(node for node in skip.place.all_input_nodes if node is not skip.node)
    with graph.inserting_before(skip.place):
        if join.kind == "dense":
            dim = join.whole.kwargs.get("dim", join.whole.args[1] if len(join.whole.args) > 1 else 0)
            made = graph.call_function(_dense, (state, join.name, skip.node, other, dim))
        elif target:  # computed where the stock block does, which may change its input in place later
            made = graph.call_function(_late, (state, join.name, _early_projection(graph, join, state, target), other))
        else:
            made = graph.call_function(_plain, (state, join.name, skip.node, other))
    skip.place.replace_input_with(skip.node, made)
    if target:
        graph.erase_node(skip.node)
    for term in join.branches:
        for node in between(join.start, term.node):
            if node.op == "call_module" and isinstance(
                block.get_submodule(str(node.target)), DropPath | StochasticDepth
            ):
                _let_pass(graph, node, state, join.name)


def _early_projection(graph: fx.Graph, join: Join, state: fx.Node, target: str) -> fx.Node:
    with graph.inserting_before(join.skip.node):
        layers = graph.create_node("get_attr", target)
        return graph.call_function(_early, (state, join.name, join.start, layers))


def _let_pass(graph: fx.Graph, node: fx.Node, state: fx.Node, name: str) -> None:
    with graph.inserting_after(node):
        made = graph.call_function(_survivor, (state, name, node.args[0], node))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def _scaled(block: nn.Module, graphs: Mapping[bool, fx.Graph]) -> type[nn.Module]:
    """The class of `block` with the forwards of the two graphs."""
    stock = type(block)
    root = copy.copy(block)
    root.__dict__ = dict(block.__dict__) | {STATE: None}
    run = {training: type(fx.GraphModule(root, graph)).forward for training, graph in graphs.items()}
    signature = inspect.signature(stock.forward)

    def forward(self: nn.Module, inputs: Tensor, *others: object, **named: object) -> Tensor:
        if others or named:
            given = signature.bind(self, inputs, *others, **named).arguments
            _, _, *rest = given.items()
            for name, value in rest:
                default = signature.parameters[name].default
                if isinstance(value, Tensor) or value not in (default, (), {}):
                    raise refusal(self, f"a call with {name}")
        return run[self.training](self, inputs)

    return type(f"Scaled{stock.__name__}", (stock,), {"forward": forward})


def _k(state: Scaling | None, name: str) -> float:
    return 1.0 if state is None else state.factors[name]


def _plain(state: Scaling | None, name: str, shortcut: Tensor, branch: Tensor) -> Tensor:
    k = _k(state, name)
    shortcut = shortcut if k == 1 else torch.zeros_like(shortcut) if k == 0 else k * shortcut
    note(state, name, shortcut, branch)
    return shortcut


def _early(state: Scaling | None, name: str, inputs: Tensor, projection: nn.Module | None) -> Tensor:
    """What the projection makes; at 0 its weights may be gone, and its input stands in."""
    return inputs if projection is None or _k(state, name) == 0 else projection(inputs)


def _late(state: Scaling | None, name: str, projected: Tensor, branch: Tensor) -> Tensor:
    return _plain(state, name, torch.zeros_like(branch) if _k(state, name) == 0 else projected, branch)


def _dense(state: Scaling | None, name: str, channels: Tensor, newest: Tensor, dim: int) -> Tensor:
    kept = carried(channels, _k(state, name), dim)
    note(state, name, kept, newest)
    return kept


def _survivor(state: Scaling | None, name: str, branch: Tensor, dropped: Tensor) -> Tensor:
    return dropped if _k(state, name) >= WEAK else branch
