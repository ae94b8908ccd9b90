"""Priors and surrogates: fitted once on public images, kept by content hash."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from mi_audit.audit import registry
from mi_audit.audit.plan import Plan
from mi_audit.audit.scene import Scene, as_settings
from mi_audit.core.attack import Attack
from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import AssistedPrior, Prior, PublicRecipe, Surrogates
from mi_audit.core.report import PriorFacts
from mi_audit.store.cache import Cache
from mi_audit.store.files import digest, hash_file
from mi_audit.store.images import contact_sheet, quantise, write_png
from mi_audit.store.targets import LoadedModel
from mi_audit.store.weights import hash_weights, read_weights, write_weights

PRIOR_SEED = 0  # priors belong to the public data, not to a run


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What one recipe made of the public images, ready for use."""

    name: str
    made: Prior | Surrogates
    facts: PriorFacts


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What an attack is handed before it starts.

    Attributes:
        prior: The prior, with surrogates where the attack declares them.
        sha256: Hashes of the weights of all its parts.
    """

    prior: Prior
    sha256: str


def profile_settings(name: str, method: type[PublicRecipe], plan: Plan) -> dict[str, object]:
    """The user's settings of a recipe; recipes that know profiles get the plan's."""
    settings: dict[str, object] = dict(plan.prior_settings.get(name, {}))
    if "profile" in {field.name for field in fields(method)}:  # type: ignore[arg-type]
        settings.setdefault("profile", plan.prior_profile or ("quick" if plan.profile == "quick" else "standard"))
    return settings


def cache_file(
    cache: Cache, name: str, recipe: PublicRecipe, public: Dataset, size: int, target: LoadedModel | None
) -> Path:
    """Where the fitted weights are kept; a recipe that asks the target gets a file for every target."""
    asked = _identity(target) if target is not None and recipe.needs_target else None
    what = (name, recipe.version, as_settings(recipe), public.fingerprint, size, public.channels, asked)
    key = digest("prior", *what, *map(hash_file, recipe.files()))
    return cache.folder("priors", key) / "prior.safetensors"


def _identity(model: LoadedModel) -> tuple[object, ...]:
    """Everything that the answers of a model depend on."""
    net = model.classifier
    return model.sha256, model.arch, net.size, net.mean_values, net.std_values, net.order


def fit_recipe(name: str, scene: Scene, target: LoadedModel) -> Fitted:
    """Fit the recipe on the public images, or load its weights when the same was fitted before."""
    method = registry.pick("prior", registry.priors(), name)
    recipe = registry.build("prior", method, name, profile_settings(name, method, scene.plan))
    file = cache_file(scene.cache, name, recipe, scene.public, scene.size, target)
    if not file.is_file():
        scene.progress.stage(f"Fitting the prior {name} on {len(scene.public)} public images")
        with scene.clock.stage(f"prior {name}"):
            weights = recipe.fit(
                scene.public,
                target.target() if recipe.needs_target else None,
                PRIOR_SEED,
                scene.device,
                scene.progress.step,
                checkpoint=file.with_suffix(".checkpoint"),
            )
        write_weights(file, {key: value.cpu() for key, value in weights.items()}, {"recipe": name})
    weights, _ = read_weights(file)
    made = recipe.restore(weights, scene.size, scene.public.channels, scene.device)
    facts = PriorFacts(
        name=name,
        sha256=hash_weights(weights),
        settings=recipe.describe(scene.size, scene.public.channels) | recipe.found(weights),
        samples=_write_samples(name, made, scene) if isinstance(made, Prior) else None,
    )
    return Fitted(name, made, facts)


def assemble(parts: Sequence[Fitted]) -> Knowledge:
    """The prior, assisted by the surrogates when there are any.

    Raises:
        ConfigError: The parts are not one prior, followed by at most one set of surrogates.
    """
    match [part.made for part in parts]:
        case [Prior() as prior]:
            pass
        case [Prior() as alone, Surrogates() as surrogates]:
            prior = AssistedPrior(alone, surrogates)
        case _:
            named = ", ".join(part.name for part in parts)
            raise ConfigError(f"expected one prior, then surrogates or nothing, got {named}; correct the recipes")
    return Knowledge(prior, "+".join(part.facts.sha256 for part in parts))


def knowledge(
    scene: Scene, attack: Attack[Any, Any], models: Mapping[int, LoadedModel], fitted: dict[str, dict[int, Fitted]]
) -> dict[int, Knowledge]:
    """What the attack is handed for the model of every seed; fits what is not in `fitted` yet and adds it there."""
    for name in attack.recipes:
        if name not in fitted:
            fitted[name] = {seed: fit_recipe(name, scene, model) for seed, model in models.items()}
    return {seed: assemble([fitted[name][seed] for name in attack.recipes]) for seed in models}


@torch.no_grad()
def sample_images(prior: Prior, count: int, seed: int, device: str) -> torch.Tensor:
    """Random images of the prior, 8-bit; the first ones do not depend on `count`."""
    noise = torch.randn(count, prior.z.width, generator=torch.Generator().manual_seed(seed))
    return quantise(prior.z.decode(prior.z.draw(noise.to(device)))).cpu()


def _write_samples(name: str, prior: Prior, scene: Scene) -> str | None:
    if scene.plan.images == "none":
        return None
    picture = f"images/prior-{name}.png"
    write_png(scene.folder.path / picture, contact_sheet(sample_images(prior, 32, 0, scene.device), columns=8))
    return picture
