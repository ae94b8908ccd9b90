"""The diagonal Fisher information of every unit of a network, from per-sample gradients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mi_audit.core.errors import ConfigError
from mi_audit.core.run import Run
from mi_audit.core.types import Images, Labels, Scores
from mi_audit.nn.anatomy import dissect
from mi_audit.nn.modes import evaluating

BUDGET = 512 * 2**20  # bytes of per-sample gradients held at once, before activations
LARGEST = 64  # images in a chunk, however small the network

PerUnit = Float[Tensor, "n units"]
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """The parameters that one row of a profile is about.

    Attributes:
        name: Dotted name of the unit, or of the head.
        kind: Class name of that module.
        stage: Stage of the unit, as in `nn.anatomy`; empty for the head.
        parameters: Their names; those of layers between the last unit and the head belong to the head.
        size: Number of scalars.
    """

    name: str
    kind: str
    stage: str
    parameters: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Squares:
    """Squared per-sample gradients of a loss, summed over the parameters of each part; double precision, on the CPU.

    Attributes:
        plain: Sum over the parameters of `(d loss / d theta)^2`; its mean over images is the total Fisher information.
        scaled: Sum of `theta^2 (d loss / d theta)^2`, which does not change when a layer is rescaled.
    """

    plain: PerUnit
    scaled: PerUnit


def parts(model: nn.Module, example: Images) -> tuple[Part, ...]:
    """The units of `model` in execution order, and the head as the last row; parameters that never run are in none.

    Args:
        model: Any classifier with its input handling.
        example: An image to trace it with.

    Raises:
        ConfigError: It has no linear layer and no convolution.
    """
    anatomy = dissect(model, example)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    taken = {name for unit in anatomy.units for name in unit.parameters}
    rest = tuple(n for n, tick in anatomy.moments.items() if n in sizes and n not in taken and tick < inf)
    rows = [(unit.name, unit.kind, unit.stage, unit.parameters) for unit in anatomy.units]
    rows.append((anatomy.head, type(model.get_submodule(anatomy.head)).__name__, "", rest))
    return tuple(
        Part(name, kind, stage, own := tuple(n for n in names if n in sizes), sum(sizes[n] for n in own))
        for name, kind, stage, names in rows
    )


def empirical(
    model: nn.Module, images: Images, labels: Labels, rows: Sequence[Part], run: Run | None = None
) -> Squares:
    """Squared gradients of the cross-entropy with the labels given: the empirical Fisher (Kunstner et al., 2019).

    For the classification task the labels are the true ones, for the inversion task those that were attacked.

    Args:
        model: Maps images in [0, 1] to logits; taken in eval mode and single precision, and left as it was.
        images: In [0, 1], on the CPU; chunks of them are moved to the model's device.
        labels: One per image.
        rows: As `parts` gave them.
        run: Its `batch_size` is the largest chunk, halved on out-of-memory; None fits the chunk to the network.

    Raises:
        OutOfMemory: Not even the gradients of one image fit.
    """
    run = run or Run(batch_size=chunk_of(model))
    with _still(model):
        device = next(model.parameters()).device
        weights = {name: value.detach() for name, value in model.named_parameters()}
        total = len(images)
        run.on_step("per-sample gradients", 0, total)
        done = 0

        def squares(some: Images, theirs: Labels) -> tuple[PerUnit, PerUnit]:
            nonlocal done
            found = _squares(model, weights, some.to(device).float(), theirs.to(device), rows)
            done += len(some)
            run.on_step("per-sample gradients", done, total)
            return found

        found = run.batches(squares, images, labels)
    return Squares(torch.cat([plain for plain, _ in found]), torch.cat([scaled for _, scaled in found]))


def expected(model: nn.Module, images: Images, rows: Sequence[Part], run: Run | None = None) -> Squares:
    """The true Fisher: the same squares, with the label's expectation over `p(y | x)` of the model taken exactly.

    It costs as many passes as there are classes; `sampled` costs one.
    """
    chances = probabilities(model, images)
    plain: Tensor | float = 0.0
    scaled: Tensor | float = 0.0
    for label in range(chances.shape[1]):
        one = empirical(model, images, torch.full((len(images),), label), rows, run)
        weight = chances[:, label, None]
        plain, scaled = plain + weight * one.plain, scaled + weight * one.scaled
    return Squares(torch.as_tensor(plain), torch.as_tensor(scaled))


def sampled(
    model: nn.Module, images: Images, rows: Sequence[Part], rng: torch.Generator, run: Run | None = None
) -> Squares:
    """An unbiased estimate of the true Fisher: one label per image, drawn from `p(y | x)` of the model.

    Args:
        model: As for `empirical`.
        images: As for `empirical`.
        rows: As for `empirical`.
        rng: Of the CPU; the draws do not depend on the chunk size.
        run: As for `empirical`.
    """
    drawn = torch.multinomial(probabilities(model, images), 1, generator=rng).squeeze(1)
    return empirical(model, images, drawn, rows, run)


@torch.no_grad()
def probabilities(model: nn.Module, images: Images) -> Scores:
    """What the model answers, in double precision on the CPU."""
    with _still(model):
        device = next(model.parameters()).device
        logits = [model(some.to(device).float()).double().cpu() for some in images.split(LARGEST)]
    return torch.cat(logits).softmax(dim=1)


def chunk_of(model: nn.Module) -> int:
    """How many images' gradients fit the budget at once."""
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    return max(1, min(LARGEST, BUDGET // max(1, size)))


def _squares(
    model: nn.Module, weights: Parameters, images: Images, labels: Labels, rows: Sequence[Part]
) -> tuple[PerUnit, PerUnit]:
    """The two sums of one chunk, added up in double precision and brought to the CPU."""
    gradients = _gradients(model, weights, images, labels)
    plain, scaled = [], []
    for row in rows:
        plain.append(sum((_norm(gradients[n]) for n in row.parameters), images.new_zeros(len(images)).double()))
        weighed = (_norm(gradients[n] * weights[n]) for n in row.parameters)
        scaled.append(sum(weighed, images.new_zeros(len(images)).double()))
    return torch.stack(plain, dim=1).cpu(), torch.stack(scaled, dim=1).cpu()


def _norm(gradient: Tensor) -> Float[Tensor, " n"]:
    """The sum of squares of every row, squared in double precision: below 1e-23 a single one has no square."""
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64).square()


def _gradients(model: nn.Module, weights: Parameters, images: Images, labels: Labels) -> dict[str, Tensor]:
    """The gradient of each image's cross-entropy: for every parameter one row per image.

    A network that vectorisation does not reach, because it looks at values on its way, is asked image by image.
    """

    def loss(theta: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, theta, (image[None],))
        return F.cross_entropy(logits.float(), label[None])

    one = grad(loss)
    try:
        return vmap(one, in_dims=(None, 0, 0))(dict(weights), images, labels)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
    each = [one(dict(weights), image, label) for image, label in zip(images, labels, strict=True)]
    return {name: torch.stack([gradients[name] for gradients in each]) for name in weights}


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Eval mode, single precision and plain attention, which alone has vectorised second arguments, for the block."""
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ConfigError("expected weights in single precision, got others; convert the model to float32")
    fast = torch.backends.mha.get_fastpath_enabled()
    device = next(model.parameters()).device.type
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
