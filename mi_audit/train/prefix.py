"""Training behind a frozen prefix: its activations are computed once and kept, instead of again in every epoch."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mi_audit.core.dataset import Dataset
from mi_audit.core.types import Images, Logits
from mi_audit.nn.anatomy import Anatomy, Call, dissect
from mi_audit.nn.freezing import train_mode
from mi_audit.nn.modes import evaluating, keeping_modes
from mi_audit.nn.precision import Precision, autocast

SHARE = 0.25  # of the free memory, at most
CHECKED = 8  # images for which what enters the head is compared with the full pass: a fresh head may be all zeros
TRIES = 6  # ends of the prefix that are tried, the deepest first
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # largest difference, relative to the largest value
AGAIN = "the frozen prefix runs again in every epoch"


class _Reached(Exception):
    """The frozen prefix ended; nothing behind it has to run."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output


@dataclass(eq=False)
class FrozenPrefix:
    """The activations of all training images at the end of the frozen prefix of a network.

    Attributes:
        model: Maps images in [0, 1] to logits; as the trainer holds it.
        name: Dotted name of the module whose output is kept.
        skipped: The modules that run up to then and need not run again, outermost ones only, with their shapes.
        features: Output of that module per image, in the order of the data set.
    """

    model: nn.Module
    name: str
    skipped: dict[str, Call]
    features: Tensor

    @contextmanager
    def instead(self, rows: Tensor) -> Iterator[None]:
        """The first pass of the network inside goes on from what was kept for the training images `rows`.

        It has to be given these images: code between modules looks at them, such as a resize. Modules of the prefix
        give zeros of the right shape in that pass, so hooks on them see nothing useful. Further passes are whole.

        Args:
            rows: Positions in the data set.
        """
        kept = self.features[rows.to(self.features.device)]
        if self.features.dim() == 4 and self.features.is_contiguous(memory_format=torch.channels_last):
            kept = kept.contiguous(memory_format=torch.channels_last)
        with _skipping(self.model, self.skipped, self.name, kept):
            yield

    def logits(self, images: Images, rows: Tensor) -> Logits:
        """What `model(images)` gives in its present mode, for the training images `rows`, without the prefix."""
        with self.instead(rows):
            return self.model(images)


def frozen_prefix(
    model: nn.Module,
    data: Dataset,
    *,
    device: str,
    precision: Precision = "32",
    taps: Collection[str] = (),
    batch_size: int = 256,
) -> tuple[FrozenPrefix | None, str]:
    """The cached prefix of `model`, and a note on what was kept or why nothing was.

    Only for trainings in which every epoch shows the same images: no augmentation, no change of the images, no loss
    that needs gradients with respect to them. With frozen batch norms in eval mode the prefix is then a fixed
    function: what enters the head of the network in eval mode is compared, for a few images, behind the prefix in
    training mode and without it. Logits differ from those of the plain path by rounding, because the prefix saw the
    images in other batches.

    Args:
        model: With its frozen parameters marked; stays as it is.
        data: All training images.
        device: Where they are trained on.
        precision: Of the training; the features are kept in the format that it computes.
        taps: Names of modules whose outputs the loss looks at; the prefix ends before or with the first of them.
        batch_size: Images at once.
    """
    example = data.images(slice(0, CHECKED), device)
    anatomy = dissect(model, example)
    with autocast(device, precision), evaluating(model), torch.no_grad():
        prefix = _found(model, anatomy, example, taps)
        if isinstance(prefix, str):
            return None, prefix
        per_image = prefix.features[0].numel() * prefix.features.element_size()
        needed = len(data) * per_image
        if needed > SHARE * free_memory(device):
            return None, f"{AGAIN}: its features would take {needed / 2**20:,.0f} MiB, over a quarter of what is free"
        kept = _empty(prefix.features, len(data))
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            kept[rows] = _output(model, prefix.name, data.images(rows, device))
        prefix.features = kept
    return prefix, f"the frozen prefix, up to {prefix.name}, ran once; its features take {needed / 2**20:,.1f} MiB"


def prefix_ends(model: nn.Module, anatomy: Anatomy, taps: Collection[str] = ()) -> tuple[str, ...]:
    """Modules at whose end nothing that learns or is random has run yet and no tap is over, the last first."""
    modules = dict(model.named_modules())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    with keeping_modes(model):
        train_mode(model)
        varying = [
            call.start for name, call in anatomy.calls.items() if modules[name].training and _varies(modules[name])
        ]
    learning = [tick for name, tick in anatomy.moments.items() if name not in frozen]
    watched = [anatomy.calls[name].end + 1 if name in anatomy.calls else 0 for name in taps]
    limit = min([*varying, *learning, *watched], default=float("inf"))
    first = min((tick for name, tick in anatomy.moments.items() if name in frozen), default=limit)
    ends = {name: call.end for name, call in anatomy.calls.items() if name and first < call.end < limit}
    return tuple(sorted(ends, key=lambda name: -ends[name]))


def free_memory(device: str) -> int:
    """Bytes that may be taken on `device`; a quarter of all where the system does not say what is free."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = "SC_AVPHYS_PAGES" in os.sysconf_names
    pages = os.sysconf("SC_AVPHYS_PAGES") if known else os.sysconf("SC_PHYS_PAGES") // 4
    return pages * os.sysconf("SC_PAGE_SIZE")


def _found(model: nn.Module, anatomy: Anatomy, example: Images, taps: Collection[str]) -> FrozenPrefix | str:
    ends = prefix_ends(model, anatomy, taps)
    if not ends:
        return "no frozen prefix: nothing to keep"
    rows = torch.arange(len(example))
    full = _entering(model, anatomy.head, lambda: model(example))
    for name in ends[:TRIES]:
        output = _output(model, name, example)
        if not isinstance(output, Tensor) or len(output) != len(example):
            continue
        tried = FrozenPrefix(model, name, _before(anatomy, name), output)
        try:
            short = _entering(model, anatomy.head, partial(tried.logits, example, rows))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError):
            continue  # the code between the modules wanted more than a tensor of the right shape
        if short.shape == full.shape:
            scale = full.abs().max() * TOLERANCE.get(output.dtype, TOLERANCE[torch.bfloat16])
            if bool((short - full).abs().max() <= scale):
                return tried
    return f"{AGAIN}: the network does not go through the end of it alone"


def _varies(module: nn.Module) -> bool:
    """Whether a module gives something else in every training step though nothing in it learns."""
    own = not any(True for _ in module.children())
    return own and (isinstance(module, (_BatchNorm, nn.modules.dropout._DropoutNd)) or "Drop" in type(module).__name__)


def _before(anatomy: Anatomy, name: str) -> dict[str, Call]:
    """The outermost modules that have ended when `name` does, without its own parts."""
    end = anatomy.calls[name].end
    ended = {
        other: call for other, call in anatomy.calls.items() if call.end < end and not other.startswith(f"{name}.")
    }
    return {other: call for other, call in ended.items() if other.rpartition(".")[0] not in ended}


def _output(model: nn.Module, name: str, images: Images) -> Any:  # noqa: ANN401
    """What the module `name` gives for `images` while the network trains; nothing behind it runs."""

    def stop(module: nn.Module, inputs: object, output: object) -> None:
        del module, inputs
        raise _Reached(output)

    hook = model.get_submodule(name).register_forward_hook(stop)
    try:
        with keeping_modes(model):
            train_mode(model)
            model(images)
    except _Reached as reached:
        return reached.output
    finally:
        hook.remove()
    return None


def _entering(model: nn.Module, head: str, run: Callable[[], Tensor]) -> Tensor:
    """What the head is given when the network runs."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        seen.append(inputs[0].float())

    hook = model.get_submodule(head).register_forward_pre_hook(note)
    try:
        run()
    finally:
        hook.remove()
    return seen[-1]


def _empty(features: Tensor, count: int) -> Tensor:
    shape = (count, *features.shape[1:])
    layout = torch.contiguous_format
    if features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    return torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=layout)


@contextmanager
def _skipping(model: nn.Module, skipped: dict[str, Call], name: str, kept: Tensor) -> Iterator[None]:
    """While it lasts the modules of the prefix give zeros, and the last of them what was kept."""
    last = model.get_submodule(name)
    others = {model.get_submodule(other): call for other, call in skipped.items()}

    def give(*inputs: object, **more: object) -> Tensor:
        del inputs, more
        restore()  # a module that is used again behind the prefix is itself again
        return kept

    def restore() -> None:
        for module in (last, *others):
            module.__dict__.pop("forward", None)

    try:
        for module, call in others.items():
            module.__dict__["forward"] = _zeros(kept, call)
        last.__dict__["forward"] = give
        yield
    finally:
        restore()


def _zeros(kept: Tensor, call: Call) -> Callable[..., Tensor]:
    """A forward pass that costs nothing: one zero, seen as the right shape."""
    shape = (len(kept) * call.gave[0], *call.gave[1:]) if call.gave else ()
    zero = torch.zeros((), device=kept.device, dtype=kept.dtype)

    def give(*inputs: object, **more: object) -> Tensor:
        del inputs, more
        return zero.expand(shape)

    return give
