"""Skip connections of blocks that no family knows, found and scaled by tracing the block's own forward pass.

Only the forward of the block itself is read; its children are steps without an inside. A skip connection is a sum or
concatenation through which everything that leaves the block has passed, one of whose terms comes unchanged, up to steps
without weights, from where the terms part. A sum without such a term has a projection shortcut when exactly one term
has a single layer with weights and the others have more. What has two readings is refused, never guessed.
"""

import copy
import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timm.layers.drop import DropPath
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from mi_audit.core.errors import ConfigError
from mi_audit.nn.skips_joining import WEAK, Add, Handler, Kind, Scaling, carried

STATE = "skip_scaling"  # attribute of a scaled block
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
CATS = (torch.cat, torch.concat, torch.concatenate)
FACTS = ("shape", "ndim", "dtype", "device", "size", "dim", "numel", "new_zeros", "new_ones")
PRODUCTS = (
    torch.matmul, operator.matmul, torch.bmm, torch.baddbmm, torch.addmm, torch.einsum, F.linear, F.bilinear, F.conv1d,
    F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.scaled_dot_product_attention, "matmul", "bmm", "mm",
)  # fmt: skip


class _Shallow(fx.Tracer):
    proxy_buffer_attributes = True  # a buffer that is trained or moved must not become a constant

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every child is one step."""
        del m, module_qualified_name
        return True


@dataclass(frozen=True, slots=True)
class _Term:
    """One operand of a sum or concatenation.

    Attributes:
        place: Node of the sum that has it as an operand; sums of three terms are two nodes.
        node: What is added.
        fewest, most: Numbers of layers with weights on the ways from where the terms part.
    """

    place: fx.Node
    node: fx.Node
    fewest: int
    most: int


@dataclass(frozen=True, slots=True)
class _Join:
    """A skip connection in a graph: `start` is where the terms part, `whole` the last node of the sum."""

    name: str
    kind: Kind
    start: fx.Node
    whole: fx.Node
    skip: _Term
    branches: Sequence[_Term]


def handler(block: nn.Module) -> Handler | None:
    """How to scale the skip connections of `block`, named by their nodes in its graph; None when it has none.

    Raises:
        ConfigError: It cannot be traced, or a skip connection has two readings or lies in a child's forward.
    """
    if not _weighs(block) or not any(_weighs(child) for child in block.children()):
        return None
    graphs = {training: _trace(block, training=training) for training in (False, True)}
    joins = {training: tuple(_joins(block, graph)) for training, graph in graphs.items()}
    found = {join.name: Add(join.kind, _projection(join)) for join in joins[False]}
    if found != {join.name: Add(join.kind, _projection(join)) for join in joins[True]}:
        raise _refusal(block, "others in training than in evaluation")
    if not found:
        _refuse_hidden(block)
        return None
    for training, own in joins.items():
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
                raise _refusal(stock, "a traced forward that computes something else")


def _inputs(net: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, Tensor]:
    taken: dict[str, Tensor] = {}

    def note(name: str, block: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        _, *others = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
        if others or not arguments or not isinstance(arguments[0], Tensor):
            raise _refusal(block, "one that takes more than one tensor")
        taken[name] = arguments[0].clone()

    modes = {module: module.training for module in net.modules()}
    hooks = [net.get_submodule(n).register_forward_pre_hook(partial(note, n), with_kwargs=True) for n in names]
    try:
        net.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return taken


def _refusal(block: nn.Module, got: str) -> ConfigError:
    return ConfigError(
        f"expected a {type(block).__name__} whose skip connection can be told from its forward, got {got}; "
        "choose a network of a known family, or a defense without surgery"
    )


def _trace(block: nn.Module, *, training: bool) -> fx.Graph:
    """The graph of the block's forward with its first input alone; every other has its default."""
    stock = type(block)
    root = copy.copy(block)  # shares the children; what tracing leaves on it does not reach the block
    root.__dict__ = dict(block.__dict__) | {STATE: None, "training": training}
    root.__class__ = type(stock.__name__, (stock,), {"forward": lambda self, inputs: stock.forward(self, inputs)})
    try:
        graph = _Shallow().trace(root)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _refusal(block, f"'{reason}' while tracing it") from error
    known = {name for name, _ in (*block.named_parameters(), *block.named_buffers())}
    if any(node.op == "get_attr" and node.target not in known for node in graph.nodes):
        raise _refusal(block, "a constant that is made in its forward")
    return graph


def _joins(block: nn.Module, graph: fx.Graph) -> Iterator[_Join]:
    """The skip connections on the trunk of the graph, in order."""
    reached = _reached(graph)
    order = [node for node in graph.nodes if node in reached]
    dominators: dict[fx.Node, list[fx.Node]] = {}
    for node in order:
        above = [dominators[other] for other in node.all_input_nodes if other in reached]
        shared = [other for other in above[0] if all(other in rest for rest in above)] if above else []
        dominators[node] = [*shared, node]
    end = next(node for node in graph.nodes if node.op == "output")
    if end not in reached or end.args[0] not in reached:
        raise _refusal(block, "one that returns no tensor made of its input")
    trunk = dominators[end]
    for node in trunk:
        if _operands(node, reached):
            found = _read(block, node, dominators[node][-2], trunk, reached)
            if found is not None:
                yield found


def _reached(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values are made of those of the input; its shape and type are not among them."""
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        asked = node.args[1] if node.target is getattr else node.target if node.op == "call_method" else None
        about = asked in FACTS
        if node.op == "placeholder" or (not about and any(other in reached for other in node.all_input_nodes)):
            reached.add(node)
    return reached


def _operands(node: fx.Node, reached: set[fx.Node]) -> list[fx.Node]:
    """The terms of a sum or concatenation that are made of the input; none for other nodes and for single terms."""
    terms: Sequence[object] = ()
    if node.target in SUMS and node.op != "call_module":
        terms = [*node.args, *(value for key, value in node.kwargs.items() if key != "alpha")]
    elif node.target in CATS:
        given = node.args[0] if node.args else node.kwargs.get("tensors")
        terms = given if isinstance(given, list | tuple) else ()
    found = [term for term in terms if isinstance(term, fx.Node) and term in reached]
    return found if len(found) > 1 else []


def _read(
    block: nn.Module, node: fx.Node, start: fx.Node, trunk: Sequence[fx.Node], reached: set[fx.Node]
) -> _Join | None:
    """What a sum or concatenation on the trunk joins; None when it is no skip connection."""
    dense = node.target in CATS
    costs = _costs(block, start, node, reached)
    terms = [_Term(place, term, *costs[term]) for place, term in _terms(node, trunk, reached, flatten=not dense)]
    if all(term.most == 0 for term in terms):
        possible = [] if dense else _itself(start, terms)
    else:
        light = min(term.fewest for term in terms) == 0
        possible = [] if dense and not light else [term for term in terms if term.fewest <= (0 if light else 1)]
        if not dense and not possible:
            raise _refusal(block, f"{node.name}, none of whose terms could be the shortcut")
    if not possible:
        return None
    if len(possible) > 1 or possible[0].most > 1 or possible[0].fewest < possible[0].most:
        raise _refusal(block, f"{node.name}, which can be read in several ways")
    skip = possible[0]
    kind: Kind = "dense" if dense else "projection" if skip.most else "identity"
    return _Join(node.name, kind, start, node, skip, [term for term in terms if term is not skip])


def _itself(start: fx.Node, terms: Sequence[_Term]) -> list[_Term]:
    """The unchanged term of a sum without weights whose others come from children, such as pooling."""
    plain = [term for term in terms if term.node is start]
    children = [any(node.op == "call_module" for node in _between(start, term.node)) for term in terms]
    return plain if len(plain) == 1 and sum(children) == len(terms) - 1 else []


def _terms(
    node: fx.Node, trunk: Sequence[fx.Node], reached: set[fx.Node], *, flatten: bool
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Terms with the node they are operands of; sums that are used in this sum alone are taken apart."""
    for term in _operands(node, reached):
        inner = flatten and term.target in SUMS and term not in trunk and len(term.users) == 1
        if inner and _operands(term, reached):
            yield from _terms(term, trunk, reached, flatten=True)
        else:
            yield node, term


def _costs(block: nn.Module, start: fx.Node, end: fx.Node, reached: set[fx.Node]) -> dict[fx.Node, tuple[int, int]]:
    """Fewest and most layers with weights on the ways from `start` to each node up to `end`."""
    costs = {start: (0, 0)}
    for node in start.graph.nodes:
        above = [costs[other] for other in node.all_input_nodes if other in costs]
        if node in reached and node is not start and above:
            own = _layers(block, node)
            costs[node] = (min(low for low, _ in above) + own, max(high for _, high in above) + own)
        if node is end:
            break
    return costs


def _layers(block: nn.Module, node: fx.Node) -> int:
    if node.op == "call_module":
        return _weighs(block.get_submodule(str(node.target)))
    return int(node.target in PRODUCTS)


def _weighs(module: nn.Module) -> int:
    """Number of weight matrices and kernels in a module; scales and biases per channel do not count."""
    return sum(sum(side > 1 for side in parameter.shape) > 1 for parameter in module.parameters())


def _refuse_hidden(block: nn.Module) -> None:
    """A block whose children have skip connections is not one without."""
    for name, child in block.named_children():
        own = type(child).__module__.startswith("torch.nn")
        if not own and handler(child) is not None:
            raise _refusal(block, f"one whose skip connection is in its child {name}")


def _projection(join: _Join) -> str:
    """Attribute of the block that is the whole shortcut; empty when there is none or it has several steps."""
    node = join.skip.node
    whole = node.op == "call_module" and node.args == (join.start,) and len(node.users) == 1 and not node.kwargs
    return str(node.target) if join.kind == "projection" and whole and "." not in str(node.target) else ""


def _rewrite(block: nn.Module, graph: fx.Graph, join: _Join) -> None:
    """Let the shortcut and the stochastic depth of the branches go by the factor of the block's state."""
    with graph.inserting_before(graph.find_nodes(op="placeholder")[0].next):
        state = graph.create_node("get_attr", STATE)
    skip, target = join.skip, _projection(join)
    other = next(node for node in skip.place.all_input_nodes if node is not skip.node)
    with graph.inserting_before(skip.place):
        if join.kind == "dense":
            dim = join.whole.kwargs.get("dim", join.whole.args[1] if len(join.whole.args) > 1 else 0)
            made = graph.call_function(_dense, (state, join.name, skip.node, dim))
        elif target:  # computed where the stock block does, which may change its input in place later
            made = graph.call_function(_late, (state, join.name, _early_projection(graph, join, state, target), other))
        else:
            made = graph.call_function(_plain, (state, join.name, skip.node))
    skip.place.replace_input_with(skip.node, made)
    if target:
        graph.erase_node(skip.node)
    for term in join.branches:
        for node in _between(join.start, term.node):
            if node.op == "call_module" and isinstance(
                block.get_submodule(str(node.target)), DropPath | StochasticDepth
            ):
                _let_pass(graph, node, state, join.name)


def _early_projection(graph: fx.Graph, join: _Join, state: fx.Node, target: str) -> fx.Node:
    with graph.inserting_before(join.skip.node):
        layers = graph.create_node("get_attr", target)
        return graph.call_function(_early, (state, join.name, join.start, layers))


def _between(start: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    """`end` and what it is made of behind `start`."""
    seen, waiting = {start}, [end]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
            yield node


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
                    raise _refusal(self, f"a call with {name}")
        return run[self.training](self, inputs)

    return type(f"Scaled{stock.__name__}", (stock,), {"forward": forward})


def _k(state: Scaling | None, name: str) -> float:
    return 1.0 if state is None else state.factors[name]


def _plain(state: Scaling | None, name: str, shortcut: Tensor) -> Tensor:
    k = _k(state, name)
    if k == 1:
        return shortcut
    return torch.zeros_like(shortcut) if k == 0 else k * shortcut


def _early(state: Scaling | None, name: str, inputs: Tensor, projection: nn.Module | None) -> Tensor:
    """What the projection makes; at 0 its weights may be gone, and its input stands in."""
    return inputs if projection is None or _k(state, name) == 0 else projection(inputs)


def _late(state: Scaling | None, name: str, projected: Tensor, branch: Tensor) -> Tensor:
    return torch.zeros_like(branch) if _k(state, name) == 0 else _plain(state, name, projected)


def _dense(state: Scaling | None, name: str, channels: Tensor, dim: int) -> Tensor:
    return carried(channels, _k(state, name), dim)


def _survivor(state: Scaling | None, name: str, branch: Tensor, dropped: Tensor) -> Tensor:
    return dropped if _k(state, name) >= WEAK else branch
