"""Freezing the first units of a network, so that only the rest learns from the private data."""

import difflib
import math
import re
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mi_audit.core.errors import ConfigError
from mi_audit.core.types import Images
from mi_audit.nn import skips
from mi_audit.nn.anatomy import Anatomy, dissect

GRAMMAR = "none | 80% | params:80% | stage:3 | module:<name> | index:<n> | linear-probe | auto[:<points>]"
PAPER_CUTS = {  # (class of the units, their number) -> section 4 and released settings of TL-DMI
    ("BasicBlock", 8): "6 of 8 units (ResNet-18: stage:3)",
    ("Bottleneck", 50): "47 of 50 units (ResNet-152: stage:3)",
    ("Conv2d", 13): "8 of 13 units (VGG-16: index:26)",
    ("bottleneck_IR", 24): "6 of 24 units (FaceNet64: index:5)",
    ("bottleneck_IR", 50): "47 of 50 units (IR152: index:46)",
}


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the frozen part of a network ends, before a network is known.

    Attributes:
        spec: As the user wrote it.
        kind: `units` and `params` are shares of depth and of backbone parameters.
        amount: Percent for `units` and `params`, count for `stage` and `index`, accuracy points for `auto`.
        name: Dotted name of the module for `module`.
    """

    spec: str
    kind: Literal["none", "units", "params", "stage", "module", "index", "linear-probe", "auto"]
    amount: float = 0.0
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeFacts:
    """What a freeze did.

    Attributes:
        spec: As the user wrote it.
        units_frozen, units_total: Depth, in units of `nn.anatomy`.
        last_frozen: Dotted name of the last frozen unit; empty when no whole unit is frozen.
        frozen: Names of the frozen parameters.
        parameters_frozen, parameters_total, parameters_trainable: Numbers of scalars.
        share_frozen: Share of all parameters that is frozen, head included.
        paper_cut: The cut of the TL-DMI paper for this architecture, when known.
    """

    spec: str
    units_frozen: int
    units_total: int
    last_frozen: str
    frozen: tuple[str, ...]
    parameters_frozen: int
    parameters_total: int
    parameters_trainable: int
    share_frozen: float
    paper_cut: str | None

    def as_mapping(self) -> dict[str, object]:
        """The facts as plain values for a manifest, with a `summary` to print."""
        return asdict(self) | {"frozen": list(self.frozen), "summary": str(self)}

    def __str__(self) -> str:
        paper = f"; the paper froze {self.paper_cut}" if self.paper_cut else ""
        return (
            f"freeze {self.spec}: {self.units_frozen} of {self.units_total} units "
            f"({self.last_frozen or 'none'} is the last), {self.share_frozen:.1%} of the parameters; "
            f"{self.parameters_trainable / 1e6:.2f} M of {self.parameters_total / 1e6:.2f} M stay trainable{paper}"
        )


def parse(spec: str) -> Cut:
    """Read a freeze specification.

    Raises:
        ConfigError: It is not in the grammar, or its number is out of range.
    """
    match = re.fullmatch(
        r"(?P<word>none|linear-probe|auto)"
        r"|(?P<share>params:|)(?P<percent>\d+(\.\d+)?)%"
        r"|(?P<counted>stage|index|auto):(?P<number>\d+(\.\d+)?)"
        r"|module:(?P<name>\S+)",
        spec.strip(),
    )
    if match is None:
        raise ConfigError(f"expected --freeze {GRAMMAR}, got {spec!r}; write for example 80% or stage:3")
    word, share, percent, counted, number, name = match.group("word", "share", "percent", "counted", "number", "name")
    if word == "auto" or counted == "auto":
        return Cut(spec, "auto", float(number or 2))
    if word:
        return Cut(spec, "none" if word == "none" else "linear-probe")
    if name:
        return Cut(spec, "module", name=name)
    if percent:
        return _share(spec, "params" if share else "units", float(percent))
    return _count(spec, "stage" if counted == "stage" else "index", float(number))


def freeze(model: nn.Module, spec: str, example: Images) -> FreezeFacts:
    """Take the first part of `model` out of training: its parameters no longer require a gradient.

    Layers between two units go with the second, the stem with the first. The head is never frozen. Parameters that
    were frozen before stay so. Use `train_mode` in the training loop, so that batch norms of frozen units stay fixed.

    Args:
        model: Any classifier; changed in place, and only when no error is raised.
        spec: In the grammar of `parse`.
        example: Images to trace the network with; one suffices, of the size it is used at.

    Raises:
        ConfigError: The specification is wrong, names a part that is not there, freezes nothing or the head.
    """
    cut = parse(spec)
    if cut.kind == "auto":
        raise ConfigError("expected a resolved cut, got auto; only `mi-audit defend` can search for it")
    anatomy = dissect(model, example)
    frozen = _select(cut, model, anatomy)
    _refuse_useless(cut, anatomy, frozen)
    skips.refuse_inside(model, frozen)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return _facts(cut, model, anatomy, frozen)


def train_mode(model: nn.Module) -> None:
    """Switch to training mode except every subtree that owns parameters none of which requires grad.

    A frozen batch norm would otherwise keep updating its running statistics from the private data, and frozen
    dropout would stay random, although neither can learn any more. A batch norm without parameters of its own takes the
    mode of the last layer with parameters that is registered before it.
    """
    model.train()
    frozen = False
    for module in model.modules():
        own = tuple(module.parameters(recurse=False))
        frozen = not any(parameter.requires_grad for parameter in own) if own else frozen
        parameters = tuple(module.parameters())
        learns = any(parameter.requires_grad for parameter in parameters)
        if not learns and (parameters or (frozen and isinstance(module, _BatchNorm))):
            module.eval()


def _share(spec: str, kind: Literal["units", "params"], percent: float) -> Cut:
    if percent > 100:
        raise ConfigError(f"expected a share up to 100%, got {spec!r}; write for example 80%")
    return Cut(spec, kind, percent) if percent else Cut(spec, "none")


def _count(spec: str, kind: Literal["stage", "index"], number: float) -> Cut:
    first = 1 if kind == "stage" else 0
    if not number.is_integer() or number < first:
        raise ConfigError(f"expected a whole number from {first}, got {spec!r}; write for example {kind}:3")
    return Cut(spec, kind, number)


def _select(cut: Cut, model: nn.Module, anatomy: Anatomy) -> tuple[str, ...]:
    """Names of the parameters to freeze."""
    if cut.kind == "none":
        return ()
    if cut.kind == "linear-probe":
        return tuple(name for name in anatomy.moments if not _in_head(name, anatomy))
    if cut.kind == "module":
        return anatomy.until(_named(cut, model, anatomy))
    if not anatomy.units:
        raise ConfigError(
            f"expected a network with hidden layers to freeze, got a single layer for {cut.spec!r}; use none"
        )
    if cut.kind == "index":
        return anatomy.until(_child(cut, model, anatomy))
    count = {"units": _by_depth, "params": _by_parameters, "stage": _by_stage}[cut.kind](cut, model, anatomy)
    return tuple(name for unit in anatomy.units[:count] for name in unit.parameters)


def _by_depth(cut: Cut, model: nn.Module, anatomy: Anatomy) -> int:
    del model
    total = len(anatomy.units)
    count = math.floor(round(cut.amount * total / 100, 6))  # 58 % of 50 is 28.999999999999996 before rounding
    if not count:
        least = math.ceil(1000 / total) / 10
        raise ConfigError(
            f"expected at least {least:g}% (one of {total} units), got {cut.spec!r}; raise it or use none"
        )
    return count


def _by_parameters(cut: Cut, model: nn.Module, anatomy: Anatomy) -> int:
    sizes = _sizes(model)
    backbone = sum(size for name, size in sizes.items() if not _in_head(name, anatomy))
    held = accumulate(sum(sizes.get(name, 0) for name in unit.parameters) for unit in anatomy.units)
    shares = [100 * size / backbone for size in held]
    count = sum(share <= cut.amount for share in shares)
    if not count:
        least = math.ceil(10 * shares[0]) / 10
        raise ConfigError(
            f"expected at least params:{least:g}% (the first unit), got {cut.spec!r}; raise it or use none"
        )
    return count


def _by_stage(cut: Cut, model: nn.Module, anatomy: Anatomy) -> int:
    del model
    stages = list(dict.fromkeys(unit.stage for unit in anatomy.units))
    if len(stages) == 1:
        raise ConfigError(f"expected a network with stages, got one whose units lie flat for {cut.spec!r}; use 80%")
    if cut.amount > len(stages):
        raise ConfigError(
            f"expected stage:1 to stage:{len(stages)}, got {cut.spec!r}; {stages[-1]!r} is the last stage"
        )
    return sum(unit.stage in stages[: int(cut.amount)] for unit in anatomy.units)


def _child(cut: Cut, model: nn.Module, anatomy: Anatomy) -> str:
    """The n-th child, from 0, of the lowest module that contains all units: the way the paper's code counts."""
    children = [name for name, _ in model.get_submodule(anatomy.trunk).named_children()]
    if cut.amount >= len(children):
        where = anatomy.trunk or "the network"
        raise ConfigError(f"expected index:0 to index:{len(children) - 1} ({where}), got {cut.spec!r}; lower it")
    name = ".".join(filter(None, (anatomy.trunk, children[int(cut.amount)])))
    if name not in anatomy.calls:
        raise ConfigError(f"expected a layer that runs, got {name!r} for {cut.spec!r}; choose another index")
    return name


def _named(cut: Cut, model: nn.Module, anatomy: Anatomy) -> str:
    """The full name of the module; wrappers such as `net.` need not be spelled out."""
    found = [name for name in anatomy.calls if name == cut.name or name.endswith(f".{cut.name}")]
    found = [name for name in found if name.count(".") == min(other.count(".") for other in found)]
    if len(found) == 1:
        return found[0]
    names = [name for name, _ in model.named_modules() if name in anatomy.calls]
    close = difflib.get_close_matches(cut.name, found or names, n=3, cutoff=0.3)
    raise ConfigError(f"expected one module that runs, got {len(found)} called {cut.name!r}; try {', '.join(close)}")


def _refuse_useless(cut: Cut, anatomy: Anatomy, frozen: tuple[str, ...]) -> None:
    if any(_in_head(name, anatomy) for name in frozen):
        raise ConfigError(f"expected a cut before the head {anatomy.head!r}, got {cut.spec!r}; choose an earlier part")
    if not frozen and cut.kind != "none":
        raise ConfigError(f"expected a cut behind the first parameters, got {cut.spec!r}; choose a later part or none")


def _facts(cut: Cut, model: nn.Module, anatomy: Anatomy, frozen: tuple[str, ...]) -> FreezeFacts:
    sizes, gone = _sizes(model), set(frozen)
    done = [unit for unit in anatomy.units if unit.parameters and gone.issuperset(unit.parameters)]
    lost, total = sum(sizes.get(name, 0) for name in frozen), sum(sizes.values())
    kind = anatomy.units[0].kind if anatomy.units else ""
    return FreezeFacts(
        spec=cut.spec,
        units_frozen=len(done),
        units_total=len(anatomy.units),
        last_frozen=done[-1].name if done else "",
        frozen=frozen,
        parameters_frozen=lost,
        parameters_total=total,
        parameters_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        share_frozen=lost / total,
        paper_cut=PAPER_CUTS.get((kind, len(anatomy.units))),
    )


def _sizes(model: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def _in_head(parameter: str, anatomy: Anatomy) -> bool:
    return parameter.startswith(f"{anatomy.head}.")
