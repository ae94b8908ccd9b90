"""The attacks as plain loops in the shape of the published code, written from their update rules.

What is slow about them is meant to be: weights require gradients, which pile up unread; one batch of classes after the
other, one restart after the other; a host synchronisation or two per step; contiguous maps; batch norms as layers of
their own; StyleGAN2 with weights per image. They start where the attacks of this package start and draw what they
draw, so that equal numbers of steps are equal work and, up to rounding, equal results.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.attacks.gmi import GMI
from mi_audit.attacks.kedmi import KEDMI
from mi_audit.attacks.lomma import LOMMA
from mi_audit.attacks.plg_mi import PLGMI
from mi_audit.core.random import Streams
from mi_audit.nn.views import Chain, Jitter, RandomCrop, Rotation


@dataclass(frozen=True, eq=False)
class Networks:
    """What a reference loop runs: plain modules in eval mode, on one device.

    Attributes:
        target: Images to logits.
        head: Its last linear layer, for attacks that look at features.
        generator: Latents, styles or latents and labels to images.
        critic: Images to scores, or to features and logits; None for attacks that use none.
        students: More classifiers.
        centre: Mean features of public images.
        classes: Logits of the target.
        width: Normal numbers that a latent is made of.
        batch: Images that are attacked at once.
    """

    target: nn.Module
    head: nn.Module
    generator: nn.Module
    critic: nn.Module | None
    students: tuple[nn.Module, ...]
    centre: Tensor | None
    classes: int
    width: int
    batch: int

    def modules(self) -> dict[str, tuple[nn.Module, ...]]:
        """By the name under which passes are counted."""
        parts = {"generator": (self.generator,), "target": (self.target,), "student": self.students}
        return parts | ({"critic": (self.critic,)} if self.critic is not None else {})


@dataclass(eq=False)
class Found:
    """Where a reference loop ended, in the order of the package: by class, then by restart.

    Attributes:
        images, labels: The reconstructions.
        gradients: Of the latents in the first step, as the optimiser of the loop saw them.
        moved: Latents after that step.
    """

    images: Tensor
    labels: Tensor
    gradients: Tensor | None = None
    moved: Tensor | None = None
    seen: dict[str, float] = field(default_factory=dict)


class Tape:
    """Keeps the first gradient and the latents after the first step, row by row."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.gradients: Tensor | None = None
        self.moved: Tensor | None = None

    def note(self, step: int, rows: Tensor, gradient: Tensor, moved: Tensor) -> None:
        if step == 0:
            if self.gradients is None or self.moved is None:
                self.gradients, self.moved = (
                    torch.zeros(self.rows, *gradient.shape[1:], device=gradient.device) for _ in range(2)
                )
            self.gradients[rows], self.moved[rows] = gradient.detach().clone(), moved.detach().clone()


def turns(classes: Tensor, restarts: int, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One batch of classes after the other, each restart by restart: rows of the result, labels, restarts."""
    for part in torch.arange(len(classes), device=classes.device).split(batch):
        for restart in range(restarts):
            yield part * restarts + restart, classes[part], torch.full_like(part, restart)


def gmi(nets: Networks, attack: GMI, classes: Tensor, seed: int) -> Found:
    """Nesterov steps on `100 cross-entropy - critic`, a mean over the batch; latents are clipped after every step."""

    def losses(fake: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        prior = -nets.critic(fake).mean()
        return prior, F.cross_entropy(nets.target(fake), labels)

    return _nesterov(nets, attack, classes, seed, losses)


def lomma(nets: Networks, attack: LOMMA, classes: Tensor, seed: int) -> Found:
    """GMI's steps on the mean over target and students of minus the logit, with the distance of the features."""

    def losses(fake: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        caught: list[Tensor] = []
        handle = nets.head.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
        prior, identity = -nets.critic(fake).mean(), torch.zeros((), device=fake.device)
        for model in (nets.target, *nets.students):
            term = F.nll_loss(model(fake), labels)
            identity = term if identity == 0 else identity + term
        handle.remove()
        distance = (caught[0].flatten(1) - nets.centre).square().mean()
        return prior, identity / (1 + len(nets.students)) + attack.feature_weight * distance

    return _nesterov(nets, attack, classes, seed, losses)


def _nesterov(
    nets: Networks,
    attack: GMI | LOMMA,
    classes: Tensor,
    seed: int,
    losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Found:
    size = attack.restarts * len(classes)
    tape, images = Tape(size), [torch.empty(0)] * size
    for rows, labels, restarts in turns(classes, attack.restarts, nets.batch):
        z = Streams.of(seed, labels, restarts).normal("start", nets.width).requires_grad_()
        velocity = torch.zeros_like(z)
        for step in range(attack.steps):
            fake = nets.generator(z)
            prior, identity = losses(fake, labels)
            if z.grad is not None:
                z.grad.data.zero_()
            total = attack.critic_weight * prior + attack.identity_weight * identity
            total.backward()
            before = velocity.clone()
            gradient = z.grad.data
            velocity = attack.momentum * velocity - attack.lr * gradient
            z = z + (-attack.momentum * before + (1 + attack.momentum) * velocity)
            z = z.detach().clamp(-attack.clip, attack.clip).requires_grad_()
            tape.note(step, rows, gradient, z)
            said(prior.item(), identity.item())
        _finish(nets, z, rows, images)
    return _found(images, classes.repeat_interleave(attack.restarts), tape)


def _finish(nets: Networks, z: Tensor, rows: Tensor, images: list[Tensor], *more: Tensor) -> None:
    """The images of a batch, and the look that the target takes at them."""
    with torch.no_grad():
        fake = nets.generator(z, *more)
        nets.target(fake).softmax(dim=1)
    for row, image in zip(rows.tolist(), fake, strict=True):
        images[row] = image


def _found(images: list[Tensor], labels: Tensor, tape: Tape) -> Found:
    return Found(torch.stack(images), labels, tape.gradients, tape.moved)


def said(*numbers: float) -> None:
    """Published loops print such numbers now and then; what costs time is that they were fetched."""
    del numbers


def kedmi(nets: Networks, attack: KEDMI, classes: Tensor, seed: int) -> Found:
    """Adam on the mean and the log-variance of a Gaussian per class; every step decodes one draw of each."""
    size = attack.samples * len(classes)
    tape, images = Tape(len(classes)), [torch.empty(0)] * size
    for rows, labels, restarts in turns(classes, 1, nets.batch):
        streams = Streams.of(seed, labels, restarts)
        mean = torch.zeros(len(rows), nets.width, device=classes.device, requires_grad=True)
        log_variance = torch.full_like(mean, attack.log_variance, requires_grad=True)
        solver = torch.optim.Adam([mean, log_variance], lr=attack.lr)
        for step in range(attack.steps):
            z = mean + (log_variance / 2).exp() * streams.normal("gaussian", nets.width, step=step)
            z = z.clamp(-1, 1) if attack.clip == "pre" else z
            fake = nets.generator(z)
            real = nets.critic(fake)[1].logsumexp(dim=1)
            prior = F.softplus(real).mean() - real.mean()
            identity = F.cross_entropy(nets.target(fake), labels)
            solver.zero_grad()
            (attack.critic_weight * prior + attack.identity_weight * identity).backward()
            gradient = torch.cat([mean.grad, log_variance.grad], dim=1).clone()
            solver.step()
            tape.note(step, rows, gradient, torch.cat([mean, log_variance], dim=1))
            said(prior.item(), identity.item())
        for restart in range(attack.samples):
            drawn = Streams.of(seed, labels, torch.full_like(labels, restart))
            noise = drawn.normal("gaussian", nets.width, step=attack.steps)
            z = mean + (log_variance / 2).exp() * noise
            _finish(nets, z.clamp(-1, 1) if attack.clip == "pre" else z, rows * attack.samples + restart, images)
    return _found(images, classes.repeat_interleave(attack.samples), tape)


def plg_mi(nets: Networks, attack: PLGMI, classes: Tensor, seed: int) -> Found:
    """Adam on the max-margin loss, summed over random views that go through the target one after the other."""
    size = attack.restarts * len(classes)
    tape, images = Tape(size), [torch.empty(0)] * size
    views = [_view(attack, number) for number in range(attack.views)]
    for rows, labels, restarts in turns(classes, attack.restarts, nets.batch):
        streams = Streams.of(seed, labels, restarts)
        z = streams.normal("start", nets.width + 1)[:, :-1].clone().requires_grad_()
        solver = torch.optim.Adam([z], lr=attack.lr)
        for step in range(attack.steps):
            fake = nets.generator(z, labels)
            loss = torch.zeros((), device=z.device)
            for view in views:
                loss = loss + _margin(nets.target(view(fake, streams, step)), labels).mean()
            solver.zero_grad()
            loss.backward()
            gradient = z.grad.clone()
            solver.step()
            tape.note(step, rows, gradient, z)
            said(loss.item())
        _finish(nets, z, rows, images, labels)
    return _found(images, classes.repeat_interleave(attack.restarts), tape)


def _view(attack: PLGMI, number: int) -> Chain:
    crop = RandomCrop(attack.area, flip=attack.flip, name=f"crop {number}")
    jitter = Jitter(attack.jitter, attack.jitter, name=f"jitter {number}")
    return Chain((crop, jitter, Rotation(attack.degrees, name=f"rotation {number}")))


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None]).squeeze(1)
    rest = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -1e4)
    return rest.max(dim=1).values - own


def counted(nets: Networks) -> tuple[Counter[str], Callable[[], None]]:
    """Count the images that pass forward and backward through each network, until the second result is called."""
    work: Counter[str] = Counter()

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            tensor = output[-1] if isinstance(output, tuple) else output
            assert isinstance(tensor, Tensor)
            images = len(tensor)
            work[f"{name}_forward"] += images
            if tensor.requires_grad:
                tensor.register_hook(lambda _gradient: work.update({f"{name}_backward": images}))

        return note

    handles = [
        module.register_forward_hook(watch(name)) for name, modules in nets.modules().items() for module in modules
    ]
    return work, lambda: [handle.remove() for handle in handles] and None
