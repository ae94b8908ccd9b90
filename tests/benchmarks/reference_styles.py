"""PPA and IF-GMI as plain loops in the shape of the published code; see `reference`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mi_audit.attacks.if_gmi import IFGMI
from mi_audit.attacks.ppa import PPA
from mi_audit.core.prior import Painting
from mi_audit.core.random import Streams
from mi_audit.nn.robust_search import STYLE_LR
from mi_audit.nn.views import RandomCrop
from tests.benchmarks.reference import Found, Networks, Tape, said


def ppa(nets: Networks, attack: PPA, classes: Tensor, seed: int) -> Found:
    """Score a pool, move the best styles of one class after the other by Adam under light crops, rank by heavy ones."""
    starts = _best_of_pool(nets, attack, classes, seed)
    labels = classes.repeat_interleave(attack.restarts)
    tape, ends = Tape(len(labels)), torch.empty_like(starts)
    light = RandomCrop(attack.gentle, name="gentle")
    for rows, own, streams in _one_class_after_the_other(nets, attack.restarts, labels, seed):
        w = starts[rows].clone().requires_grad_()
        solver = torch.optim.Adam([w], lr=attack.lr or STYLE_LR, betas=attack.betas)
        for step in range(attack.steps):
            loss = poincare(nets.target(light(nets.generator(w), streams, step)), own).mean()
            solver.zero_grad()
            loss.backward()
            gradient = w.grad.clone()
            solver.step()
            tape.note(step, rows, gradient, w)
            said(loss.item())
        ends[rows] = w.detach()

    robust = _robustness(nets, attack, ends, labels, seed).view(-1, attack.restarts)
    order = robust.sort(dim=1, descending=True, stable=True).indices[:, : attack.keep]
    first = torch.arange(len(classes), device=classes.device)[:, None] * attack.restarts
    kept = (first + order).flatten()
    with torch.no_grad():
        images = torch.cat([nets.generator(part) for part in ends[kept].split(nets.batch)])
    return Found(images, labels[kept], tape.gradients, tape.moved)


def if_gmi(nets: Networks, attack: IFGMI, classes: Tensor, seed: int) -> Found:
    """Adam on styles, then on styles and the features between blocks, one block deeper at a time, within L1 balls."""
    labels = classes.repeat_interleave(attack.restarts)
    starts, tape = _best_of_pool(nets, attack, classes, seed), Tape(len(labels))
    images = [torch.empty(0)] * len(labels)
    for rows, own, streams in _one_class_after_the_other(nets, attack.restarts, labels, seed):
        w, painting = starts[rows].clone(), None
        for stage in range(min(len(attack.steps), nets.generator.blocks)):
            if stage:
                with torch.no_grad():
                    painting = nets.generator.paint(w, painting, range(stage - 1, stage))
            w, painting = _stage(nets, attack, stage, w, painting, own, streams, rows, tape)
        with torch.no_grad():
            fake = nets.generator(w, painting, stage)
            nets.target(fake).softmax(dim=1)
        for row, image in zip(rows.tolist(), fake, strict=True):
            images[row] = image
    return Found(torch.stack(images), labels, tape.gradients, tape.moved)


def _stage(
    nets: Networks,
    attack: IFGMI,
    stage: int,
    w: Tensor,
    painting: Painting | None,
    labels: Tensor,
    streams: Streams,
    rows: Tensor,
    tape: Tape,
) -> tuple[Tensor, Painting | None]:
    w = w.clone().requires_grad_()
    features = painting.features.clone().requires_grad_() if painting is not None else None
    moved = [w] if features is None else [w, features]
    origins = [one.detach().clone() for one in moved]
    solver = torch.optim.Adam(moved, lr=attack.lr, betas=attack.betas)
    crop = RandomCrop(attack.gentle, name=f"gentle {stage}")
    for step in range(attack.steps[stage]):
        start = None if painting is None else Painting(features, painting.colours)
        fake = nets.generator(w, start, stage)
        fake.detach().cpu()
        loss = poincare(nets.target(crop(fake, streams, step)), labels).mean()
        solver.zero_grad()
        loss.backward()
        gradient = w.grad.clone()
        solver.step()
        with torch.no_grad():
            for one, origin in zip(moved, origins, strict=True):
                one.copy_(origin + _onto_ball((one - origin).flatten(1), attack.radii[stage]).view_as(one))
        if stage == 0:
            tape.note(step, rows, gradient, w)
        said(loss.item())
    return w.detach(), None if painting is None else Painting(features.detach(), painting.colours)


def _one_class_after_the_other(nets: Networks, restarts: int, labels: Tensor, seed: int):
    """Rows of one class, at most a batch at a time, with their labels and streams."""
    for rows in torch.arange(len(labels), device=labels.device).split(restarts):
        for part in rows.split(nets.batch):
            yield part, labels[part], Streams.of(seed, labels[part], part % restarts)


@torch.no_grad()
def _best_of_pool(nets: Networks, attack: PPA | IFGMI, classes: Tensor, seed: int) -> Tensor:
    """Of every class the truncated styles that the target is surest of, from one pool; images and mirror images."""
    index = torch.arange(attack.pool, device=classes.device)
    noise = Streams.of(seed, torch.full_like(index, -1), index).normal("pool", nets.width)
    w = nets.generator.styles(noise)
    w = nets.generator.mean + attack.truncation * (w - nets.generator.mean)
    scores = []
    for part in w.split(nets.batch):
        images = nets.generator(part)
        sure = nets.target(images).softmax(dim=1)
        if attack.flips:
            sure = (sure + nets.target(images.flip(3)).softmax(dim=1)) / 2
        scores.append(sure[:, classes])
    best = torch.cat(scores).sort(dim=0, descending=True, stable=True).indices[: attack.restarts]
    return w[best.T.flatten()]


@torch.no_grad()
def _robustness(nets: Networks, attack: PPA, w: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Mean probability of the label, one transform of a whole batch after the other."""
    crop = RandomCrop(attack.harsh, attack.stretch, flip=0.5 if attack.flips else 0.0, name="harsh")
    means = []
    for rows in torch.arange(len(labels), device=labels.device).split(nets.batch):
        streams = Streams.of(seed, labels[rows], rows % attack.restarts)
        images, total = nets.generator(w[rows]), torch.zeros(len(rows), device=w.device)
        for view in range(attack.views):
            scores = nets.target(crop(images, streams, view)).softmax(dim=1)
            total += scores.gather(1, labels[rows, None]).squeeze(1)
        means.append(total / attack.views)
    return torch.cat(means)


def poincare(logits: Tensor, labels: Tensor, xi: float = 1e-4) -> Tensor:
    """Distance in the unit ball between normalised logits and a one-hot vector, from three norms."""
    u = logits / logits.abs().sum(dim=1, keepdim=True)
    v = (torch.eye(logits.shape[1], device=logits.device)[labels] - xi).clamp_min(0)
    inside, aim, gap = ((one.square()).sum(dim=1) for one in (u, v, u - v))
    return torch.arccosh(1 + 2 * gap / ((1 - inside) * (1 - aim)))


def _onto_ball(rows: Tensor, radius: float) -> Tensor:
    """Rows of an L1 norm above the radius, shrunk by the threshold that sorting finds (Duchi et al., ICML 2008)."""
    falling = rows.abs().sort(dim=1, descending=True).values
    excess = (falling.cumsum(dim=1) - radius) / torch.arange(1, rows.shape[1] + 1, device=rows.device)
    last = (falling > excess).sum(dim=1, keepdim=True).clamp_min(1) - 1
    return rows.sign() * F.relu(rows.abs() - excess.gather(1, last).clamp_min(0))
