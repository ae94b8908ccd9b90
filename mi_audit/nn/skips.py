"""The skip connections of a network: where they are, and scaling or removing them (RoLSS, SSF, TTS; ECCV 2024)."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn

from mi_audit.core.defense import Edit
from mi_audit.core.errors import ConfigError
from mi_audit.nn import skips_attention, skips_convolution, skips_learned, skips_maxvit, skips_residual, skips_traced
from mi_audit.nn.anatomy import Anatomy, dissect
from mi_audit.nn.plain_data import numbers, truth
from mi_audit.nn.skips_joining import Add, Handler, Handlers, Kind, Scaling, factor, scaling

NAME = "skips"  # of the edit
FAMILIES: Sequence[Handlers] = (
    skips_residual.HANDLERS,
    skips_convolution.HANDLERS,
    skips_attention.HANDLERS,
    skips_maxvit.HANDLERS,
)
FALLBACKS: Sequence[Callable[[nn.Module], Handler | None]] = (
    skips_traced.handler,
)  # for blocks of a class that no family knows
QUARTERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """One residual add or dense concatenation.

    Attributes:
        name: Name of the block and of the add, joined by a dot.
        block, add: Dotted name of the block; which of its adds.
        block_class: Class of the block.
        kind: `identity`, `projection` (it has weights of its own), `norm` or `dense`.
        stage: Number from 1 of the resolution at which it lies, counting those with skip connections. Networks of one
            resolution have four stages, each a quarter of the blocks.
        resolution: Positions of the block's output, such as `7x7`.
        factor: What the shortcut is multiplied by now; 1 unless it was scaled.
    """

    name: str
    block: str
    add: str
    block_class: str
    kind: Kind
    stage: int
    resolution: str
    factor: float


def find(net: nn.Module, example: Tensor) -> tuple[Skip, ...]:
    """The skip connections of `net` in the order in which they run.

    Args:
        net: Any network.
        example: What to trace it with; one image of the size it is used at suffices.

    Raises:
        ConfigError: It has none that is known, or a block whose skip connection cannot be told.
    """
    anatomy, modules = dissect(net, example), dict(net.named_modules())
    blocks = {name: block for name, block in _blocks(anatomy, modules).items() if _adds(block)}
    if not blocks:
        raise ConfigError(
            f"expected a network with skip connections, got {type(net).__name__} without any that is known; "
            "the method is not applicable, choose another defense"
        )
    skips_traced.check(net, [name for name, block in blocks.items() if _handler(block) is None], example)
    stages, places = _stages(anatomy, modules, blocks), {name: _positions(anatomy, name, blocks) for name in blocks}
    return tuple(
        Skip(
            name=f"{name}.{add}", block=name, add=add, block_class=type(block).__name__, kind=facts.kind,
            stage=stages[name], resolution="x".join(map(str, places[name])), factor=_factor(block, add),
        )
        for name, block in blocks.items()
        for add, facts in _adds(block).items()
    )  # fmt: skip


def last_stage(skips: Sequence[Skip], *, projections: bool = True) -> tuple[Skip, ...]:
    """Those of the last resolution that has any.

    Args:
        skips: As `find` gave them.
        projections: Whether shortcuts with weights of their own count too.

    Raises:
        ConfigError: The stage has nothing but projections, and they do not count.
    """
    last = max(skip.stage for skip in skips)
    found = tuple(skip for skip in skips if skip.stage == last and (projections or skip.kind != "projection"))
    if not found:
        raise ConfigError(
            "expected identity shortcuts in the last stage, got projections only, so nothing would change; "
            "set keep_projection=false"
        )
    return found


def edit(factors: Mapping[str, float], *, idle_projections: bool = False, learnable: bool = False) -> Edit:
    """The edit, for a manifest, that does what `scale` does with these settings."""
    flags = {"idle_projections": idle_projections, "learnable": learnable}
    return {"edit": NAME, "factors": dict(factors), **{name: True for name, flag in flags.items() if flag}}


def scale(net: nn.Module, *, factors: object, idle_projections: bool = False, learnable: object = False) -> None:
    """Multiply shortcuts by factors from now on; the keys of the state dict stay, but for factors that learn.

    Args:
        net: Changed in place, and only when no error is raised. Blocks get another class.
        factors: Factor from 0 to 1 by the name of the skip connection; 0 removes it, and with it, unless
            `idle_projections`, the weights of its projection from network and state dict.
        idle_projections: Keep those weights, so that `set_factors` can bring the shortcut back.
        learnable: Let the factors begin at these values and learn within (0, 1).

    Raises:
        ConfigError: Nothing would change, a name or factor is wrong, or a block was scaled before.
    """
    wanted = numbers("factors", factors)
    if all(value == 1 for value in wanted.values()):
        raise ConfigError(f"expected factors of skip connections below 1, got {dict(wanted)}; nothing would change")
    plans = [(net.get_submodule(name), own) for name, own in _by_block(net, wanted).items()]
    handlers = [_plan(block, own) for block, own in plans]
    learns = truth("learnable", learnable)
    for (block, own), handler in zip(plans, handlers, strict=True) if learns else ():
        skips_learned.check(block, own, handler, traced=type(block) not in _handlers())
    for (block, own), handler in zip(plans, handlers, strict=True):
        adds = dict(handler.adds(block))
        handler.install(block, own)
        block.__class__ = handler.scaled
        now = dict.fromkeys(adds, 1.0) | dict(own)
        learned = skips_learned.install(block, own) if learns else {}
        block.skip_scaling = Scaling(  # type: ignore[assignment]
            handler, adds, now, dict(own), idle_projections, learned=learned
        )
        for name, value in own.items():
            if value == 0 and adds[name].projection and not idle_projections:
                setattr(block, adds[name].projection, None)


def installed(net: nn.Module) -> dict[str, float]:
    """The factors that `scale` was asked for, by name of the skip connection; empty for a stock network."""
    return {f"{name}.{add}": value for name, _, state in scaled_blocks(net) for add, value in state.installed.items()}


def set_factors(net: nn.Module, factors: Mapping[str, float]) -> None:
    """Change the factors of skip connections that `scale` has installed.

    Raises:
        ConfigError: A name or factor is wrong, or the weights of a projection are gone.
    """
    for name, own in _by_block(net, factors).items():
        block = net.get_submodule(name)
        state = scaling(block)
        if state is None or not own.keys() <= state.installed.keys():
            raise ConfigError(f"expected scaled skip connections, got {name}.{', '.join(own)}; scale them first")
        for add, value in own.items():
            projection = state.adds[add].projection
            if value and projection and getattr(block, projection) is None:
                raise ConfigError(f"expected {name}.{projection}, got none; scale {name}.{add} with idle_projections")
        state.factors.update(own)


def reopen(net: nn.Module) -> None:
    """Open the gates of branches without a skip again: to be called when weights of the whole network were loaded.

    Where a training begins with whole skip connections they stay as they are until these go: `skips_phases.switch`.
    """
    for _, block, state in scaled_blocks(net):
        if not state.idle_projections:
            state.handler.install(block, state.installed)


def refuse_inside(net: nn.Module, frozen: Collection[str]) -> None:
    """Raise ConfigError when a parameter of a scaled block is among `frozen`.

    Its public weights were trained with the whole skip connection, and frozen they cannot learn to do without.
    """
    for name, _, _ in scaled_blocks(net):
        if any(parameter.startswith(f"{name}.") for parameter in frozen):
            raise ConfigError(
                f"expected scaled skip connections behind the frozen part, got {name} inside; freeze less, or name "
                "either the freezing or the surgery"
            )


@cache
def _handlers() -> Handlers:
    return {stock: handler for family in FAMILIES for stock, handler in family.items()}


def _handler(block: nn.Module) -> Handler | None:
    """By exact class, because the forward of a subclass may differ; a scaled block remembers its own."""
    state = scaling(block)
    return _handlers().get(type(block)) if state is None else state.handler


def _traced(block: nn.Module) -> Handler | None:
    return next((found for fallback in FALLBACKS if (found := fallback(block)) is not None), None)


def _adds(block: nn.Module) -> Mapping[str, Add]:
    state, handler = scaling(block), _handler(block) or _traced(block)
    return state.adds if state is not None else handler.adds(block) if handler else {}


def _factor(block: nn.Module, add: str) -> float:
    k = factor(block, add)
    return float(k.detach()) if isinstance(k, Tensor) else k


def _blocks(anatomy: Anatomy, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every module of a known class that ran, and the units without one inside or around them, in order."""
    known = {name for name in anatomy.calls if name in modules and _handler(modules[name])}
    unknown = {
        unit.name for unit in anatomy.units
        if not any(f"{name}.".startswith(f"{unit.name}.") or f"{unit.name}.".startswith(f"{name}.") for name in known)
    }  # fmt: skip
    order = sorted(known | (unknown if FALLBACKS else set()), key=lambda name: anatomy.calls[name].start)
    return {name: modules[name] for name in order}


def _positions(anatomy: Anatomy, name: str, blocks: Mapping[str, nn.Module]) -> tuple[int, ...]:
    gave, handler = anatomy.calls[name].gave, _handler(blocks[name])
    return gave[1:-1] if handler is not None and handler.channels_last else gave[2:]


def _stages(anatomy: Anatomy, modules: Mapping[str, nn.Module], blocks: Mapping[str, nn.Module]) -> dict[str, int]:
    """Number of the stage of each block. At 1x1 positions, where striding leaves no trace, the strides count."""
    strided = [call.end for name, call in anatomy.calls.items() if name in modules and _strides(modules[name])]
    stages: dict[str, int] = {}
    stage, before = 0, None
    for name in blocks:
        here, end = _positions(anatomy, name, blocks), anatomy.calls[name].end
        if before is None or here != before[0] or (set(here) == {1} and any(before[1] < t < end for t in strided)):
            stage += 1
        stages[name], before = stage, (here, end)
    if stage == 1 and {unit.name for unit in anatomy.units} <= blocks.keys():
        count = len(blocks)
        return {name: QUARTERS - (count - 1 - place) * QUARTERS // count for place, name in enumerate(blocks)}
    return stages


def _strides(module: nn.Module) -> bool:
    stride = getattr(module, "stride", 1)
    return max(stride) > 1 if isinstance(stride, tuple) else isinstance(stride, int) and stride > 1


def _by_block(net: nn.Module, factors: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Block -> add -> factor."""
    modules, found = dict(net.named_modules()), dict[str, dict[str, float]]()
    for name, value in factors.items():
        block, _, add = name.rpartition(".")
        if block not in modules:
            raise ConfigError(f"expected a block of {type(net).__name__}, got {name!r}; see `mi-audit inspect --skips`")
        if not 0 <= value <= 1:
            raise ConfigError(f"expected a factor from 0 to 1, got {value} for {name}; correct it")
        found.setdefault(block, {})[add] = value
    return found


def _plan(block: nn.Module, own: Mapping[str, float]) -> Handler:
    if scaling(block) is not None:
        raise ConfigError(f"expected a stock {type(block).__name__}, got one scaled before; name each defense once")
    handler = _handler(block) or _traced(block)
    if handler is None or not own.keys() <= handler.adds(block).keys():
        raise ConfigError(
            f"expected a block with the skip connections {', '.join(own)}, got {type(block).__name__}; "
            "see `mi-audit inspect --skips`"
        )
    return handler


def scaled_blocks(net: nn.Module) -> Iterator[tuple[str, nn.Module, Scaling]]:
    """Name, block and state of every block that `scale` has changed."""
    for name, module in net.named_modules():
        state = scaling(module)
        if state is not None:
            yield name, module, state
