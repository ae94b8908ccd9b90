"""The training loop of generators: several objectives, one loop."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import DataError, Diverged
from mi_audit.core.prior import Progress
from mi_audit.core.random import Streams
from mi_audit.core.types import Images, Labels, PerSample
from mi_audit.nn.adversarial import Adversarial, Round
from mi_audit.nn.gan import Networks
from mi_audit.nn.precision import Precision, autocast
from mi_audit.train import checkpoint as checkpoints
from mi_audit.train.augment import distorted, mirrored
from mi_audit.train.feeding import resident, sent
from mi_audit.train.seeding import seeded, stream

ADAPTING = 500_000  # public images in which an adapting chance of distortions can go from 0 to 1


@dataclass(frozen=True, kw_only=True)
class GanSettings:
    """How to train a generator against a critic.

    Attributes:
        objective: What the two minimise.
        steps: Critic updates, one batch of public images each.
        batch_size: Images per batch; all of them when there are fewer.
        lr, betas: Of Adam, for both networks.
        average: Decay of the exponential moving average of the generator; smaller during its first steps.
        flips: Mirror every second public image; wrong for digits, letters and most medical pictures.
        dither: Largest uniform noise added to public images, in [0, 1]; undoes the rounding to 8 bit when it is 1/256.
        shift, brightness: Largest distortion of real and generated images alike, as the critic sees them.
        chance: Probability that an image is distorted; where it starts when it adapts.
        adapt: Aim of the mean sign of the critic's scores of real images. Above it the critic is overfitting and the
            chance of a distortion grows, from 0 to 1 in half a million images (Karras et al., NeurIPS 2020: 0.6); None
            keeps the chance fixed.
        precision: Of the networks; penalties are always computed in single precision.
        save_every: Steps between two checkpoints.
    """

    objective: Adversarial
    steps: int
    batch_size: int = 64
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    average: float = 0.999
    flips: bool = False
    dither: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    chance: float = 1.0
    adapt: float | None = None
    precision: Precision = "32"
    save_every: int = 250


def fit(
    networks: Networks,
    public: Dataset,
    settings: GanSettings,
    *,
    seed: int,
    device: str,
    on_step: Progress,
    checkpoint: Path | None = None,
) -> Networks:
    """Train both networks on the public images; return the averaged generator and the critic, in eval mode.

    Args:
        networks: Freshly initialised; they are trained in place.
        public: Images of the size and channels that the networks make.
        settings: The recipe.
        seed: Of the order of the images, the latents and the distortions.
        device: Where to train.
        on_step: Called as `on_step("prior", step, steps)`.
        checkpoint: Where to keep an unfinished run; a run that finds its own file there goes on from it, and ends with
            the weights of an uninterrupted run, bit for bit.

    Raises:
        DataError: There are fewer than two public images.
        Diverged: A loss became NaN or infinite.
    """
    contest = _Contest(networks, public, settings, seed, device)
    run = f"{settings} seed {seed} on {len(public)} images {public.fingerprint}"
    start = contest.restore(checkpoints.load(checkpoint, run))
    for step in range(start, settings.steps):
        with seeded(device, seed, "networks at", step):
            contest.advance(step)
        on_step("prior", step + 1, settings.steps)
        done = step + 1 == settings.steps
        if (step + 1) % settings.save_every == 0 or done:
            contest.check(step + 1)
            if not done:
                checkpoints.save(checkpoint, run, contest.state(step + 1))
    checkpoints.clear(checkpoint)
    return networks._replace(generator=contest.averaged.eval(), critic=contest.critic.eval().requires_grad_(False))


class _Contest:
    """The two networks in training, their optimisers and the averaged generator."""

    def __init__(self, networks: Networks, public: Dataset, settings: GanSettings, seed: int, device: str) -> None:
        if len(public) < 2:
            raise DataError(f"expected at least two public images, got {len(public)} in {public.name}; add more")
        self.settings, self.seed, self.device = settings, seed, device
        self.latent, self.classes = networks.latent, networks.classes
        self.batch = min(settings.batch_size, len(public))
        self.pixels, self.labels = resident(public, device)
        self.orders: dict[int, tuple[int, Tensor]] = {}
        layout = torch.channels_last
        self.generator = networks.generator.to(device, memory_format=layout).train().requires_grad_(True)  # type: ignore[call-overload]
        self.critic = networks.critic.to(device, memory_format=layout).train().requires_grad_(True)  # type: ignore[call-overload]
        self.averaged: nn.Module = copy.deepcopy(self.generator).requires_grad_(False)
        self.makes, self.judges = (
            torch.optim.Adam(network.parameters(), settings.lr, settings.betas, fused=True)
            for network in (self.generator, self.critic)
        )
        self.losses = torch.zeros(settings.save_every, 2, device=device)
        self.chance = torch.tensor(settings.chance, device=device)

    def advance(self, step: int) -> None:
        """Update the critic and, when it is due, the generator."""
        settings, objective = self.settings, self.settings.objective
        rng = stream(self.seed, "step", step)
        rows = self._rows(step)
        real = self._real(rows, torch.rand(self.batch, generator=rng), rng)
        latents = sent(torch.randn(self.batch, self.latent, generator=rng), self.device)
        views = sent(torch.rand(2, self.batch, 3, generator=rng), self.device)
        mix = sent(torch.rand(self.batch, generator=rng), self.device)
        asked = sent(torch.randint(max(1, self.classes), (self.batch,), generator=rng), self.device)
        if settings.chance < 1 or settings.adapt is not None:  # numbers of 0.5 leave an image as it is
            drawn = sent(torch.rand(2, self.batch, 1, generator=rng), self.device)
            views = torch.where(drawn < self.chance, views, 0.5)
        due = (step + 1) % objective.critic_steps == 0

        with torch.set_grad_enabled(due), autocast(self.device, settings.precision):
            made = self.generator(latents, asked) if self.classes else self.generator(latents)
        made = made.float()
        number = torch.arange(self.batch, device=self.device)
        round = Round(
            step=step,
            rows=sent(rows, self.device),
            labels=sent(self.labels[rows], self.device),
            real=real,
            seen_real=self._view(real, views[0]),
            more_real=tuple(self._more(step, copy, rng) for copy in range(1, objective.real_batches)),
            made=made,
            seen_made=self._view(made, views[1]),
            asked=asked,
            streams=Streams.of(self.seed, torch.full_like(number, step), number),
        )

        def judge(images: Images, *labels: Labels) -> Any:  # noqa: ANN401
            scores = self._judge(images, *labels)
            if settings.adapt is not None and images is round.seen_real:
                self._adapt(scores.detach(), settings.adapt)
            return scores

        self.critic.requires_grad_(True)
        loss = objective.critic_objective(judge, round)
        penalty = objective.penalty(self.critic, round.seen_real, round.seen_made.detach(), mix, step)
        self._update(self.judges, loss if penalty is None else loss + penalty)
        self.losses[step % settings.save_every, 0] = loss.detach()
        if due:
            self.critic.requires_grad_(False)
            loss = objective.generator_objective(self._judge, round)
            penalty = objective.generator_penalty(self.generator, latents, step)
            self._update(self.makes, loss if penalty is None else loss + penalty)
            self.losses[step % settings.save_every, 1] = loss.detach()
            follow(self.averaged, self.generator, settings.average, (step + 1) // objective.critic_steps)

    def _adapt(self, scores: PerSample, aim: float) -> None:
        """Distort more often when the critic is too sure of the public images, else less often."""
        overfitting = scores.float().sign().mean() - aim
        self.chance.add_(overfitting.sign() * self.batch / ADAPTING).clamp_(0, 1)

    def check(self, step: int) -> None:
        """Look at the losses since the last look; one synchronisation.

        Raises:
            Diverged: One of them is NaN or infinite.
        """
        weights = torch.stack([weight.isfinite().all() for weight in self.averaged.parameters()]).all()
        since = (step - 1) % len(self.losses) + 1  # steps since the last look
        broken = ~torch.cat([self.losses[:since].isfinite().all(dim=1), weights[None]])
        if bool(broken.any()):
            first = step - since + min(int(broken.int().argmax()), since - 1) + 1
            raise Diverged(
                f"expected finite losses of the prior, got NaN or infinity at step {first} of "
                f"{self.settings.steps} (learning rate {self.settings.lr}); lower the learning rate or use precision 32"
            )

    def state(self, step: int) -> dict[str, object]:
        """Everything that the following steps depend on."""
        return {
            "step": step,
            "chance": self.chance,
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def restore(self, state: dict[str, object] | None) -> int:
        """Go back to `state`; returns the number of steps done."""
        if state is None:
            return 0
        for name, part in self._parts().items():
            part.load_state_dict(state[name])  # type: ignore[arg-type]
        step, chance = state["step"], state["chance"]
        assert isinstance(step, int) and isinstance(chance, Tensor)
        self.chance.copy_(chance)
        return step

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        networks = {"generator": self.generator, "critic": self.critic, "averaged": self.averaged}
        return {**networks, "makes": self.makes, "judges": self.judges}

    def _rows(self, step: int, copy: int = 0) -> Labels:
        """Rows of the batch of `step`; every epoch and copy has its own order and drops an incomplete batch."""
        epoch, place = divmod(step, len(self.pixels) // self.batch)
        if copy not in self.orders or self.orders[copy][0] != epoch:
            rng = stream(self.seed, "epoch", epoch, *([copy] if copy else []))
            self.orders[copy] = epoch, torch.randperm(len(self.pixels), generator=rng).to(self.pixels.device)
        return self.orders[copy][1][place * self.batch : (place + 1) * self.batch]

    def _real(self, rows: Labels, flip: Float[Tensor, " b"], rng: torch.Generator) -> Images:
        images = sent(self.pixels[rows], self.device).float() / 255
        if self.settings.dither:
            noise = sent(torch.rand(images.shape, generator=rng), self.device)
            images = images.lerp(noise, self.settings.dither)  # stays in [0, 1]
        return mirrored(images, sent(flip, self.device)) if self.settings.flips else images

    def _more(self, step: int, copy: int, rng: torch.Generator) -> Images:
        """Another batch of public images, as the critic sees them."""
        flip, view = torch.rand(self.batch, generator=rng), torch.rand(self.batch, 3, generator=rng)
        return self._view(self._real(self._rows(step, copy), flip, rng), sent(view, self.device))

    def _view(self, images: Images, uniform: Float[Tensor, "b 3"]) -> Images:
        shift, brightness = self.settings.shift, self.settings.brightness
        return distorted(images, uniform, shift, brightness) if shift or brightness else images

    def _judge(self, images: Images, *labels: Labels) -> Any:  # noqa: ANN401
        with autocast(self.device, self.settings.precision):
            return self.critic(images.contiguous(memory_format=torch.channels_last), *labels)

    def _update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def follow(averaged: nn.Module, network: nn.Module, decay: float, update: int) -> None:
    """Move `averaged` towards `network` by one minus the decay, running statistics of batch norms included.

    Args:
        averaged: The average.
        network: The network it follows.
        decay: Share of the average that stays.
        update: Updates of the network so far; the first ones count more, `(1 + update) / (10 + update)` at most stays.
    """
    stays = min(decay, (1 + update) / (10 + update))
    for mean, now in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - stays)
        else:
            mean.copy_(now)
