"""Compiled passes of frozen networks: one per number of rows, each checked against the network as it is."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mi_audit.core.run import is_out_of_memory
from mi_audit.nn.folding import ROUNDING, outputs
from mi_audit.nn.precision import single

Compiling = Literal["auto", "on", "off"]
Network = TypeVar("Network", bound=nn.Module)
Backend = str | Callable[..., Any]  # name of one of the compiler's, or one of our own
Kind = tuple[object, ...]  # all that a compiled pass is made for, but the number of rows

PAYS: Mapping[str, bool] = {
    "cpu": False,  # measured on a prototype of these loops: without it each was faster, by 1.1 to 1.3
    "cuda": False,  # never measured
}
SIZES = 8  # numbers of rows that a network is compiled for; beyond that it runs as it is
FEWEST = 8  # rows that others are filled up to
LAUNCH_BOUND = 64  # rows below which an accelerator waits for its next order, so that a recorded graph pays
FAILURES = (RuntimeError, AttributeError, TypeError, ValueError, IndexError, ImportError, OSError, AssertionError)

_log = logging.getLogger(__name__)
_backend: ContextVar[Backend | None] = ContextVar("backend", default=None)


def pays(device: str) -> bool:
    """Whether compiling was measured to pay on `device`: nowhere so far, so that `auto` compiles nothing.

    On processors it lost in all cases that a prototype was tried in. On accelerators it was never tried: a guess is no
    measurement.
    """
    return PAYS.get(torch.device(device).type, False)


def compiles(wanted: Compiling, device: str) -> bool:
    """What `--compile` comes to on `device`."""
    return pays(device) if wanted == "auto" else wanted == "on"


@contextmanager
def compiling(wanted: bool, backend: Backend = "inductor") -> Iterator[None]:
    """What `compiled` is given inside the block runs compiled inside such blocks, and nothing does inside others."""
    token = _backend.set(backend if wanted else None)
    try:
        yield
    finally:
        _backend.reset(token)


def compiled(net: Network) -> Network:
    """`net`, whose passes are compiled from here on when `compiling` says so.

    Compiled are only passes that a gradient comes back through, of the whole network in eval mode, while its weights
    are frozen and nobody listens to a layer; all others run as before. There is one compiled pass per number of rows,
    and few of them: the first number that comes, larger ones, and powers of two, up to which the rows of other batches
    are filled by copies of the last one. So a batch that shrinks does not compile for ever.

    The first pass of each number is run both ways. When the compiler fails, no gradient comes back, or the results are
    farther from those in single precision than twice what the network itself is, then it runs as it is from there on,
    in that precision.

    Args:
        net: Each row of what it gives depends on the same row of what it is given. It is changed in place, and so
            are copies of it, also in other processes.
    """
    backend = _backend.get()
    if backend is not None:
        net.forward = _Quick(net, backend)
    return net


def as_is(net: nn.Module) -> Callable[..., Any]:
    """A pass of `net` that is never compiled: what a backward pass computes again has to be the same both times."""
    return type(net).forward.__get__(net)


@dataclass(eq=False)
class _Quick:
    """Takes the place of the `forward` of `net`."""

    net: nn.Module
    backend: Backend
    refused: set[Kind] = field(default_factory=set)
    known: dict[tuple[Kind, int], Callable[..., Any]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "known": {}, "refused": set()}  # every process and every copy compiles for itself

    def __call__(self, *given: Any) -> Any:  # noqa: ANN401
        kind = self._kind(given) if _backend.get() is not None else None
        rows = len(given[0]) if kind is not None else 0
        size = self._size(kind, rows) if kind is not None else None
        if kind is None or size is None:
            return as_is(self.net)(*given)
        ready = self.known.get((kind, size)) or self._learnt(kind, size, given)
        return as_is(self.net)(*given) if ready is None else ready(*given)

    def _kind(self, given: Sequence[object]) -> Kind | None:
        """What these inputs have in common with others of other numbers of rows; None for what is not compiled."""
        tensors = [part for part in given if isinstance(part, Tensor)]
        if not tensors or tensors[0] is not given[0] or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return None
        if not any(part.requires_grad for part in tensors) or any(len(part) != len(tensors[0]) for part in tensors):
            return None
        if self.net.training or any(weight.requires_grad for weight in self.net.parameters()):
            return None
        inner = (module for module in self.net.modules() if module is not self.net)
        if any(module._forward_hooks or module._forward_pre_hooks for module in inner):
            return None
        device = tensors[0].device.type
        mixed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return (mixed, *((p.shape[1:], p.dtype, p.requires_grad) if isinstance(p, Tensor) else p for p in given))

    def _size(self, kind: Kind, rows: int) -> int | None:
        """How many rows these are filled up to; None leaves them to the network as it is."""
        if kind in self.refused:
            return None
        sizes = [size for known, size in self.known if known == kind]
        power = max(FEWEST, 1 << (rows - 1).bit_length())
        if fitting := [size for size in sizes if rows <= size <= power]:
            return min(fitting)
        if not rows or len(self.known) >= SIZES:
            return None
        return power if sizes and rows < max(sizes) else rows

    def _learnt(self, kind: Kind, size: int, given: Sequence[Any]) -> Callable[..., Any] | None:
        """A compiled pass for `size` rows, when it gives what the network gives."""
        device, name = given[0].device, type(self.net).__name__
        mode = "reduce-overhead" if device.type == "cuda" and size < LAUNCH_BOUND else None
        mode = mode if self.backend == "inductor" else None
        ready = _filled(torch.compile(as_is(self.net), backend=self.backend, mode=mode, dynamic=False), size, mode)
        try:
            with torch._dynamo.config.patch(recompile_limit=64):  # of all networks of this class together
                same = _same(as_is(self.net), ready, given)
        except FAILURES as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            _log.warning("%s is not compiled, the compiler failed: %s", name, reason)
            self.refused.add(kind)
            return None
        if not same:
            _log.warning("%s is not compiled: it would give something else", name)
            self.refused.add(kind)
            return None
        self.known[kind, size] = ready
        return ready


def _filled(run: Callable[..., Any], size: int, mode: str | None) -> Callable[..., Any]:
    """`run` on rows that are filled up to `size`; what it gives belongs to the caller."""

    def whole(*given: Any) -> Any:  # noqa: ANN401
        rows = len(given[0])
        gave = run(*(_taken(part, size - rows, mode) if isinstance(part, Tensor) else part for part in given))
        return _each(gave, lambda part: part[:rows].clone() if mode else part[:rows])

    return whole


def _taken(part: Tensor, missing: int, mode: str | None) -> Tensor:
    part = torch.cat([part, part[-1:].detach().expand(missing, *part.shape[1:])]) if missing else part
    part = part.contiguous()
    if mode and part.requires_grad:  # a recorded graph writes over its results the next time
        part = part.view_as(part)
        part.register_hook(torch.clone)
    return part


def _each(result: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """`result` with every tensor in it changed."""
    if isinstance(result, Tensor):
        return change(result)
    return type(result)(_each(part, change) for part in result)


def _same(plain: Callable[..., Any], ready: Callable[..., Any], given: Sequence[Any]) -> bool:
    """Whether both give the same, each in its rounding, and hand finite gradients back."""
    device = given[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with single(str(device)):
            exact = _passed(plain, given)
        usual, ours = _passed(plain, given), _passed(ready, given)
    if len(ours) != len(exact):
        return False
    coarsest = max(torch.finfo(part.dtype).eps for part in usual)  # a network may be told to compute in bfloat16
    rounding = max(ROUNDING, 2 * coarsest)
    return all(_as_close(*parts, rounding) for parts in zip(ours, usual, exact, strict=True))


def _as_close(ours: Tensor, usual: Tensor, exact: Tensor, rounding: float) -> bool:
    if ours.shape != exact.shape:
        return False
    allowed = 2 * (usual.float() - exact.float()).abs().max() + rounding * exact.abs().max().clamp_min(1e-6)
    return bool((ours.float() - exact.float()).abs().max() <= allowed)  # False for NaN


def _passed(run: Callable[..., Any], given: Sequence[Any]) -> list[Tensor]:
    """What `run` gives, with the same random numbers every time."""
    torch.manual_seed(0)
    own = [_again(part) if isinstance(part, Tensor) else part for part in given]
    gave = list(outputs(run(*own)))
    starts = [part for part in own if isinstance(part, Tensor) and part.requires_grad]
    ends = [part for part in gave if part.requires_grad]
    found = torch.autograd.grad(ends, starts, [torch.ones_like(part) for part in ends], allow_unused=True)
    gradients = [gradient for gradient in found if gradient is not None]
    if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
        raise ValueError("expected a finite gradient")
    return [part.detach() for part in gave]


def _again(part: Tensor) -> Tensor:
    return part.detach().clone().requires_grad_(part.requires_grad)
