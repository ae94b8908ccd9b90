"""Priors on their own: train one ahead of an audit, describe it, look at its samples."""

from dataclasses import dataclass
from pathlib import Path

from mi_audit.audit import registry
from mi_audit.audit.fitting import PRIOR_SEED, cache_file, profile_settings, sample_images
from mi_audit.audit.plan import Plan
from mi_audit.audit.progress import ProgressSink
from mi_audit.audit.scene import as_settings, choose_device, choose_size
from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.prior import PriorRecipe
from mi_audit.store.cache import Cache
from mi_audit.store.datasets import load_dataset
from mi_audit.store.images import contact_sheet, write_png
from mi_audit.store.weights import hash_weights, read_weights, write_weights


@dataclass(frozen=True, slots=True, eq=False)
class Workshop:
    """A recipe with the data and the file it belongs to."""

    name: str
    recipe: PriorRecipe
    public: Dataset
    size: int
    device: str
    file: Path


def train_prior(plan: Plan, name: str, progress: ProgressSink) -> dict[str, object]:
    """Fit the prior `name` on the public data of `plan`, unless it is cached, and describe it."""
    shop = workshop(plan, name)
    if not shop.file.is_file():
        progress.stage(f"Fitting the prior {name} on {len(shop.public)} public images of {shop.size} px")
        weights = shop.recipe.fit(
            shop.public, None, PRIOR_SEED, shop.device, progress.step, checkpoint=shop.file.with_suffix(".checkpoint")
        )
        write_weights(shop.file, {key: value.cpu() for key, value in weights.items()}, {"recipe": name})
    return _facts(shop)


def describe_prior(plan: Plan, name: str) -> dict[str, object]:
    """What would be trained, and whether it is cached already."""
    shop = workshop(plan, name)
    return _facts(shop)


def sample_prior(plan: Plan, name: str, count: int, output: Path) -> dict[str, object]:
    """Write a sheet of `count` random samples of the cached prior as PNG.

    Raises:
        DataError: The prior was not trained yet.
    """
    shop = workshop(plan, name)
    if not shop.file.is_file():
        raise DataError(f"expected a trained prior {name}, got none in the cache; run `mi-audit generator train` first")
    weights, _ = read_weights(shop.file)
    prior = shop.recipe.restore(weights, shop.size, shop.public.channels, shop.device)
    images = sample_images(prior, count, plan.seed, shop.device)
    write_png(output, contact_sheet(images, columns=min(8, count)))
    return {**_facts(shop), "samples": str(output)}


def workshop(plan: Plan, name: str) -> Workshop:
    """Load the public data and find the place of the prior in the cache."""
    if plan.public is None:
        raise DataError("expected public images to train on, got none; give --public FOLDER")
    device = choose_device(plan.device)
    cache = Cache(plan.cache)
    size = choose_size(64, plan.size)
    public = load_dataset(plan.public, size, None, convert_color=plan.convert_color, cache=cache)
    method = registry.pick("prior", registry.priors(), name)
    recipe = registry.build("prior", method, name, profile_settings(name, method, plan))
    if recipe.needs_target or not isinstance(recipe, PriorRecipe):
        raise ConfigError(f"expected a prior that needs no target, got {name}; it is fitted by `mi-audit attack`")
    return Workshop(name, recipe, public, size, device, cache_file(cache, name, recipe, public, size, None))


def _facts(shop: Workshop) -> dict[str, object]:
    trained = shop.file.is_file()
    return {
        "name": shop.name,
        "public": shop.public.name,
        "images": len(shop.public),
        "size": shop.size,
        "channels": shop.public.channels,
        "settings": as_settings(shop.recipe),
        "description": shop.recipe.describe(shop.size, shop.public.channels),
        "trained": trained,
        "file": str(shop.file) if trained else None,
        "sha256": hash_weights(read_weights(shop.file)[0]) if trained else None,
    }
