"""Steps of DP-SGD: Poisson batches, gradients per image, clipped and noised, with an account of what they spend."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Int64
from opacus.accountants import create_accountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from mi_audit.core.defense import Stepper, Training
from mi_audit.core.errors import ConfigError
from mi_audit.core.types import Images, Labels, Logits, PerSample, Scalar
from mi_audit.nn.group_norm import training_batch_norms
from mi_audit.train.seeding import stream

LEFT_BEHIND = ("grad_sample", "summed_grad")  # what the private optimiser writes on the parameters


@cache  # seconds of search for one number, the same for all seeds of a run
def noise_for(epsilon: float, delta: float, rate: float, steps: int, accounting: str) -> float:
    """The least noise multiplier, to the accountant's tolerance, at which `steps` spend at most `epsilon`.

    Args:
        epsilon: The budget.
        delta: Probability with which it may be exceeded.
        rate: Probability of an image to be in a batch.
        steps: In the whole training.
        accounting: How the steps are composed: `prv` or `rdp`.

    Raises:
        ConfigError: No noise is enough.
    """
    try:
        return get_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant=accounting,
            epsilon_tolerance=min(0.01, epsilon / 100),
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(
            f"expected a budget that some noise keeps, got epsilon {epsilon:g} and delta {delta:g}; raise epsilon"
        ) from error


class PrivateSteps(Stepper):
    """DP-SGD (Abadi et al., CCS 2016) with the optimiser and the accountants of Opacus.

    Every image is in every batch with probability `rate = 1 / steps`, on its own. The gradient of each image is clipped
    to `max_grad_norm`, their sum gets normal noise of deviation `noise * max_grad_norm`, and is divided by the expected
    batch size: the true one is private. The gradients come from `torch.func`, one image at a time, and not from hooks,
    which refuse layers that add in place; nothing is attached to the modules.

    Args:
        model: In single precision; no batch normalisation of it may train.
        optimiser: Of its trainable parameters.
        training: The training.
        noise: The noise multiplier.
        max_grad_norm: Largest norm of the gradient of one image.
        delta: Of the budget.
        accounting: How the steps are composed: `prv` or `rdp`.
        at_once: Images whose gradients are held in memory together; it does not change the result.
        secret: Draw batches and noise from the operating system's entropy. From the seed, whoever knows it can take
            the noise away, and there is no privacy.

    Raises:
        ConfigError: A batch normalisation would train.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        training: Training,
        *,
        noise: float,
        max_grad_norm: float,
        delta: float,
        accounting: str,
        at_once: int,
        secret: bool,
    ) -> None:
        mixing = training_batch_norms(model)
        if mixing:
            raise ConfigError(
                f"expected no batch normalisation that trains under DP-SGD, got {', '.join(mixing[:3])}; "
                "replace it by group normalisation, or freeze the layers before it at public values"
            )
        self.steps = -(-training.images // training.batch_size)
        self.rate = 1 / self.steps
        self._model, self._training, self._delta = model, training, delta
        self._at_once, self._secret = at_once, secret
        self._key = secrets.randbits(62) if secret else training.seed
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        device = next(iter(self._weights.values())).device
        self._generator = torch.Generator(device)
        self._optimiser = DPOptimizer(
            optimiser, noise_multiplier=noise, max_grad_norm=max_grad_norm,
            expected_batch_size=training.images * self.rate, generator=self._generator,
        )  # fmt: skip
        self._mechanism = accounting
        self._accountant = create_accountant(accounting)
        if training.before:  # the phases before took as many steps per epoch, with the same noise
            self._accountant.history = [(noise, self.rate, self.steps * training.before)]
        self._optimiser.attach_step_hook(self._accountant.get_optimizer_hook_fn(sample_rate=self.rate))

    def batches(
        self, take: Callable[[Int64[Tensor, " b"], torch.Generator], tuple[Images, Labels]], epoch: int
    ) -> Iterator[tuple[Images, Labels]]:
        rng = stream(self._key, "private", epoch)
        self._generator.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        for _ in range(self.steps):
            rows = (torch.rand(self._training.images, generator=rng) < self.rate).nonzero().flatten()
            yield take(rows, rng)

    def step(self, images: Images, labels: Labels, objective: Callable[[Logits, Labels], Scalar]) -> Scalar:
        """As in `Stepper`; the loss is divided by the expected batch size, so that an empty batch has one, too."""
        chunks = list(zip(images.split(self._at_once), labels.split(self._at_once), strict=True))
        total = torch.zeros((), device=labels.device)
        for number, (some, theirs) in enumerate(chunks):
            self._optimiser.zero_grad()
            total += self._gradients(some, theirs, objective).sum()
            self._optimiser.signal_skip_step(do_skip=number + 1 < len(chunks))
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return total / (self._training.images * self.rate)

    def state(self) -> dict[str, Any]:
        return {"key": self._key, "history": [list(row) for row in self._accountant.history]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._key = state["key"]
        self._accountant.history = [tuple(row) for row in state["history"]]

    def epsilon(self) -> float:
        """What the steps so far have spent, at `delta`."""
        return float(self._accountant.get_epsilon(self._delta)) if self._accountant.history else 0.0

    def facts(self) -> dict[str, object]:
        epsilon, largest = self.epsilon(), self._training.largest_class
        noise, steps = self._optimiser.noise_multiplier, sum(int(row[2]) for row in self._accountant.history)
        drawn = "the noise is secret" if self._secret else "the noise follows from the seed, so nothing is private yet"
        return {
            "epsilon": epsilon, "delta": self._delta, "noise_multiplier": noise, "sample_rate": self.rate,
            "steps": steps, "max_grad_norm": self._optimiser.max_grad_norm, "accountant": self._mechanism,
            "secret": self._secret, "protects": "one image", "largest_class": largest,
            "epsilon_of_largest_class": largest * epsilon,
            "summary": f"epsilon {epsilon:.3g} at delta {self._delta:.3g} for one image, {largest * epsilon:.3g} for a "
            f"class of {largest} images at a far larger delta ({steps} steps, noise {noise:.3g}, sampling rate "
            f"{self.rate:.3g}); {drawn}",
        }  # fmt: skip

    def close(self) -> None:
        for weight in self._weights.values():
            weight.grad = None
            for name in LEFT_BEHIND:
                weight.__dict__.pop(name, None)

    def _gradients(self, images: Images, labels: Labels, objective: Callable[[Logits, Labels], Scalar]) -> PerSample:
        """Leave the gradient of every image on the parameters; the loss of every image."""
        if not len(images):
            for weight in self._weights.values():
                weight.grad_sample = weight.new_zeros(0, *weight.shape)  # type: ignore[attr-defined]
            return images.new_zeros(0)

        def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return objective(functional_call(self._model, weights, (image[None],)).float(), label[None])

        weights = {name: weight.detach() for name, weight in self._weights.items()}
        each = vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")
        gradients, losses = each(weights, images, labels)
        for name, weight in self._weights.items():
            weight.grad_sample = gradients[name]  # type: ignore[attr-defined]
        return losses.detach()
