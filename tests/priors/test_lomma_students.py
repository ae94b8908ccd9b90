from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.target import Access, TorchTarget
from mi_audit.nn.architectures import built_in
from mi_audit.priors import lomma_students
from mi_audit.priors.lomma_students import LommaStudents, distillation
from tests import toy


def public(per_class: int = 6) -> Dataset:
    return toy.dataset(per_class=per_class, size=32)


def target() -> TorchTarget:
    """A network of 32-pixel images that tells the quadrants apart."""
    net = nn.Sequential(nn.AvgPool2d(4), *toy.classifier())
    return TorchTarget(net, num_classes=4, head=net[2])


def fitted(
    recipe: LommaStudents, data: Dataset | None = None, seed: int = 0, net: TorchTarget | None = None, place=None
):
    return recipe.fit(data or public(), net or target(), seed, "cpu", lambda *_: None, place)


def smoke(**settings) -> LommaStudents:
    return LommaStudents(**LommaStudents.smoke | settings)


def test_the_distillation_loss_by_hand():
    # probabilities (3/4, 1/4) against (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2); the second row agrees and counts 0
    theirs = torch.tensor([[3.0, 1.0], [5.0, 7.0]]).log()
    ours = torch.tensor([[1.0, 1.0], [50.0, 70.0]]).log()
    expected = (0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()) / 2
    torch.testing.assert_close(distillation(ours, theirs), expected)
    torch.testing.assert_close(distillation(2 * ours, 2 * theirs, temperature=2.0), expected)


def test_students_learn_what_the_target_says_about_images_they_never_saw():
    recipe = smoke(images=None, networks=("built-in:cnn",), epochs=12, batch_size=8, lr=0.05)
    data = public(per_class=20)
    found = recipe.found(fitted(recipe, data))
    assert found["agreement"][0] > 0.9
    assert found["agreement_images"] == 8


def test_the_target_is_asked_once_about_every_image():
    net = target()
    recipe = smoke(images=10)
    weights = fitted(recipe, net=net)
    assert net.ledger.spent == {Access.WHITE_BOX: 10}
    assert recipe.found(weights)["target_queries"] == 10
    assert recipe.found(weights)["agreement_images"] == 1


def test_the_feature_statistics_are_the_targets_over_the_images_to_learn_from():
    data = public()
    weights = fitted(smoke(images=None, held_out=0.5), data)
    learned = torch.randperm(24, generator=lomma_students.stream(0, "images"))[:12]
    features = target().features(data.images(learned))
    torch.testing.assert_close(weights["features.mean"], features.mean(dim=0))
    torch.testing.assert_close(weights["features.std"], features.std(dim=0))


def test_what_was_fitted_is_restored_frozen_and_differentiable_in_the_images():
    recipe = smoke()
    weights = fitted(recipe)
    surrogates = recipe.restore(weights, 32, 3, "cpu")
    assert len(surrogates.networks) == 2
    images = public().images(slice(0, 3)).requires_grad_()
    first, second = (network(images) for network in surrogates.networks)
    assert first.shape == (3, 4) and not torch.equal(first, second)
    assert torch.autograd.grad(first.sum(), images)[0].abs().sum() > 0
    assert all(not p.requires_grad for network in surrogates.networks for p in network.parameters())
    assert not any(network.training for network in surrogates.networks)
    own = {name.removeprefix("student1."): value for name, value in weights.items() if name.startswith("student1.")}
    student = built_in("cnn", 4, 3)
    student.load_state_dict(own)
    torch.testing.assert_close(student.eval()(images), second, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_students():
    first, again, other = (fitted(smoke(), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_interrupted_fit_goes_on_without_asking_again(tmp_path):
    recipe, place = smoke(epochs=2), tmp_path / "prior.checkpoint"

    def stop(label: str, done: int, total: int) -> None:
        if label.startswith("student 2/2, epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.fit(public(), target(), 0, "cpu", stop, place)
    left, seen = target(), []
    weights = recipe.fit(public(), left, 0, "cpu", lambda label, *_: seen.append(label), place)
    assert left.ledger.spent.total() == 0
    assert {label for label in seen} == {"student 2/2, epoch 2/2"}
    whole = fitted(recipe)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    assert not list(tmp_path.iterdir())


def test_students_may_start_from_published_weights(monkeypatch):
    net = built_in("cnn", 1000, 3)
    monkeypatch.setattr(lomma_students, "published", lambda _: (net, None))
    recipe = smoke(pretrained=True)
    grey = replace(public(), pixels=public().pixels[:, :1].contiguous())
    started = recipe._start("built-in:cnn", 4, 32, 1)
    assert started.channels == 3 and started.num_classes == 4
    assert torch.equal(started.net[0][0].weight, net[0][0].weight)
    looks = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 4))
    weights = fitted(recipe, grey, net=TorchTarget(looks, 4, looks[1]))
    restored = recipe.restore(weights, 32, 1, "cpu")
    assert restored.networks[0](grey.images()).shape == (24, 4)


def test_planned_and_shortened_steps():
    assert LommaStudents().planned_steps(30_000, 64, 3) == 3 * 20 * 422  # 27,000 to learn from, in batches of 64
    for networks in (None, ("built-in:cnn",)):
        short = LommaStudents(networks=networks, pretrained=True).shortened(3)
        assert short.planned_steps(30_000, 64, 3) == 3 and not short.pretrained


def test_ships_the_published_settings():
    recipe = LommaStudents()
    assert recipe.describe(64, 3)["students"] == [f"timm:efficientnet_b{n}" for n in range(3)]
    assert (recipe.epochs, recipe.batch_size, recipe.temperature, recipe.weight_decay) == (20, 64, 1.0, 1e-4)
    assert recipe._recipe().lr == 0.01 and recipe._recipe().rate(0.9) == 0.01
    assert "not published" in str(LommaStudents(profile="quick").describe(32, 1)["recipe"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"held_out": 1.0},
        {"temperature": 0.0},
        {"networks": ()},
        {"networks": ("timm:nothing",)},
        {"images": 2},
    ],
)
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=r"expected .*(student|lomma-students)"):
        LommaStudents(**wrong)


def test_needs_a_target_and_public_images():
    with pytest.raises(ConfigError, match="a target to distil"):
        smoke().fit(public(), None, 0, "cpu", lambda *_: None)
    with pytest.raises(DataError, match="at least 4 public images"):
        fitted(smoke(), public().select(torch.arange(3)))


def test_departures_from_the_published_recipe_are_told():
    told = " ".join(LommaStudents.deviations)
    assert all(word in told for word in ("One in ten", "one cycle", "up to 0.05", "Nesterov"))
