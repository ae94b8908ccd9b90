import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mi_audit.core.errors import ConfigError
from mi_audit.train.recipe import Recipe, optimiser_of, stated_recipe


def test_a_recipe_comes_back_from_a_manifest():
    recipe = Recipe(epochs=3, lr=0.1, optimiser="adam", schedule="milestones", augment="faces", clip=1.0)
    assert stated_recipe(recipe.__dict__) == recipe
    assert stated_recipe({**Recipe().__dict__, "lr": 1}) == Recipe(lr=1.0)  # JSON need not tell 1 from 1.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schedule", "cosine", "valid schedule"),
        ("optimiser", "adamw", "valid optimiser"),
        ("augment", "flip", "valid augment"),
        ("epochs", "12", "valid epochs"),
        ("epochs", True, "valid epochs"),
        ("epochs", 0, "above 0"),
        ("batch_size", -4, "above 0"),
        ("lr", 0.0, "above 0"),
        ("lr", float("nan"), "finite numbers as lr"),
        ("clip", 0.0, "above 0"),
        ("weight_decay", -1e-4, "weight_decay >= 0"),
    ],
)
def test_a_value_that_is_none_is_named(name, value, message):
    with pytest.raises(ConfigError, match=message):
        stated_recipe({**Recipe().__dict__, name: value})


@pytest.mark.parametrize(("kind", "fused"), [("cuda", True), ("cpu", False)])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_an_accelerator_updates_all_weights_at_once(kind, fused, name):
    with FakeTensorMode():  # there need not be one
        weights = [torch.nn.Parameter(torch.empty(2, device=kind))]
        assert optimiser_of(Recipe(optimiser=name), weights).param_groups[0]["fused"] is fused
