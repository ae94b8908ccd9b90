"""Reading a block's forward as a graph, to tell its skip connections.

Only the forward of the block itself is read; its children are steps without an inside. A skip connection is a sum or
concatenation through which everything that leaves the block has passed, one of whose terms comes unchanged, up to steps
without weights, from where the terms part. A sum without such a term has a projection shortcut when exactly one term
has a single layer with weights and the others have more. What has two readings is refused, never guessed.
"""

import copy
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from mi_audit.core.errors import ConfigError
from mi_audit.nn.skips_joining import Kind

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
class Term:
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
class Join:
    """A skip connection in a graph: `start` is where the terms part, `whole` the last node of the sum."""

    name: str
    kind: Kind
    start: fx.Node
    whole: fx.Node
    skip: Term
    branches: Sequence[Term]


def refusal(block: nn.Module, got: str) -> ConfigError:
    return ConfigError(
        f"expected a {type(block).__name__} whose skip connection can be told from its forward, got {got}; "
        "choose a network of a known family, or a defense without surgery"
    )


def trace(block: nn.Module, *, training: bool) -> fx.Graph:
    """The graph of the block's forward with its first input alone; every other has its default."""
    stock = type(block)
    root = copy.copy(block)  # shares the children; what tracing leaves on it does not reach the block
    root.__dict__ = dict(block.__dict__) | {STATE: None, "training": training}
    root.__class__ = type(stock.__name__, (stock,), {"forward": lambda self, inputs: stock.forward(self, inputs)})
    try:
        graph = _Shallow().trace(root)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise refusal(block, f"'{reason}' while tracing it") from error
    known = {name for name, _ in (*block.named_parameters(), *block.named_buffers())}
    if any(node.op == "get_attr" and node.target not in known for node in graph.nodes):
        raise refusal(block, "a constant that is made in its forward")
    return graph


def joins(block: nn.Module, graph: fx.Graph) -> Iterator[Join]:
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
        raise refusal(block, "one that returns no tensor made of its input")
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
) -> Join | None:
    """What a sum or concatenation on the trunk joins; None when it is no skip connection."""
    dense = node.target in CATS
    costs = _costs(block, start, node, reached)
    terms = [Term(place, term, *costs[term]) for place, term in _terms(node, trunk, reached, flatten=not dense)]
    if all(term.most == 0 for term in terms):
        possible = [] if dense else _itself(start, terms)
    else:
        light = min(term.fewest for term in terms) == 0
        possible = [] if dense and not light else [term for term in terms if term.fewest <= (0 if light else 1)]
        if not dense and not possible:
            raise refusal(block, f"{node.name}, none of whose terms could be the shortcut")
    if not possible:
        return None
    if len(possible) > 1 or possible[0].most > 1 or possible[0].fewest < possible[0].most:
        raise refusal(block, f"{node.name}, which can be read in several ways")
    skip = possible[0]
    kind: Kind = "dense" if dense else "projection" if skip.most else "identity"
    return Join(node.name, kind, start, node, skip, [term for term in terms if term is not skip])


def _itself(start: fx.Node, terms: Sequence[Term]) -> list[Term]:
    """The unchanged term of a sum without weights whose others come from children, such as pooling."""
    plain = [term for term in terms if term.node is start]
    children = [any(node.op == "call_module" for node in between(start, term.node)) for term in terms]
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
        return weights(block.get_submodule(str(node.target)))
    return int(node.target in PRODUCTS)


def weights(module: nn.Module) -> int:
    """Number of weight matrices and kernels in a module; scales and biases per channel do not count."""
    return sum(sum(side > 1 for side in parameter.shape) > 1 for parameter in module.parameters())


def projection_of(join: Join) -> str:
    """Attribute of the block that is the whole shortcut; empty when there is none or it has several steps."""
    node = join.skip.node
    whole = node.op == "call_module" and node.args == (join.start,) and len(node.users) == 1 and not node.kwargs
    return str(node.target) if join.kind == "projection" and whole and "." not in str(node.target) else ""


def between(start: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    """`end` and what it is made of behind `start`."""
    seen, waiting = {start}, [end]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
            yield node
