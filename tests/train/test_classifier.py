import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.core.defense import Stepper
from mi_audit.core.errors import ConfigError, DataError, Diverged
from mi_audit.train.accuracy import accuracy
from mi_audit.train.classifier import Span, fit
from mi_audit.train.objective import Objective, cross_entropy
from mi_audit.train.recipe import Recipe
from tests import toy


class Interrupted(Exception):
    pass


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout))
        return nn.Sequential(trunk, nn.Flatten(), nn.Linear(36, 4))


def train(model, recipe, *, data=None, val=None, on_step=lambda *_: None, **more):
    data = toy.dataset() if data is None else data
    val = toy.dataset(seed=1) if val is None else val
    return fit(model, data, val, recipe, seed=3, device="cpu", on_step=on_step, **more)


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("optimiser", "lr"), [("sgd", 0.05), ("adam", 0.01)])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_four_quadrants_are_learned(optimiser, lr, precision):
    model = network()
    fitted = train(model, Recipe(epochs=8, batch_size=8, lr=lr, optimiser=optimiser, precision=precision))
    assert fitted.val_accuracy == 1.0
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss
    assert accuracy(model, toy.dataset(seed=2), "cpu").value == 1.0


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    recipe = Recipe(epochs=2, batch_size=8, augment="faces")
    ends = []
    for seed in (3, 3, 4):
        model = network(dropout=0.5)
        fit(model, toy.dataset(), toy.dataset(), recipe, seed=seed, device="cpu", on_step=lambda *_: None)
        ends.append(bits(model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_training_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    train(network(dropout=0.5), Recipe(epochs=1, augment="shift"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, optimiser):
    recipe = Recipe(epochs=4, batch_size=5, lr=0.02, optimiser=optimiser, augment="faces", precision="32")
    whole = network(dropout=0.5)
    expected = train(whole, recipe)

    def interrupt(stage, done, total):
        if done > 2.5 * len(toy.dataset()):
            raise Interrupted

    path = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        train(network(dropout=0.5), recipe, on_step=interrupt, checkpoint=path)
    assert path.is_file()
    seen = []
    resumed = network(dropout=0.5)
    found = train(resumed, recipe, on_step=lambda stage, *_: seen.append(stage), checkpoint=path)
    assert seen[0] == "epoch 3/4"
    assert found == expected
    assert same(bits(resumed), bits(whole))
    assert not path.exists()


def test_the_checkpoint_of_another_recipe_is_not_used(tmp_path):
    path = tmp_path / "run.pt"

    def interrupt(stage, done, total):
        if stage == "epoch 2/3":
            raise Interrupted

    with pytest.raises(Interrupted):
        train(network(), Recipe(epochs=3), on_step=interrupt, checkpoint=path)
    seen = []
    train(network(), Recipe(epochs=2), on_step=lambda stage, *_: seen.append(stage), checkpoint=path)
    assert seen[0] == "epoch 1/2"


def test_a_damaged_checkpoint_starts_over(tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"not a checkpoint")
    seen = []
    train(network(), Recipe(epochs=1), on_step=lambda stage, *_: seen.append(stage), checkpoint=path)
    assert seen[0] == "epoch 1/1"


def test_the_best_epoch_on_the_validation_images_is_kept():
    class Scripted(nn.Module):
        """Says class 0 to every image, ever surer, except in its third epoch."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

        def forward(self, images):
            logits = torch.zeros(len(images), 4)
            logits[:, 0 if self.epoch != 3 else 1] = self.epoch.float()
            return logits + 0 * self.weight

    model = Scripted()
    val = toy.dataset()
    val = val.select((val.labels == 0).nonzero().flatten())

    def count_epochs(model, images, labels):
        model.epoch += 1
        return cross_entropy(model, images, labels)

    fitted = train(model, Recipe(epochs=4, batch_size=64), val=val, loss=count_epochs)
    # accuracy 1, 1, 0, 1; the loss falls with the confidence 1, 2, -, 4
    assert [epoch.val_accuracy for epoch in fitted.history] == [1.0, 1.0, 0.0, 1.0]
    assert fitted.epoch == 4
    assert int(model.epoch) == 4
    fitted = train(Scripted(), Recipe(epochs=3, batch_size=64), val=val, loss=count_epochs)
    assert fitted.epoch == 2


def test_without_validation_images_the_last_weights_stay():
    nothing = toy.dataset().select(torch.zeros(0, dtype=torch.int64))
    model = network()
    ends = []

    def watch(model, images, labels):
        ends.append(bits(model))
        return cross_entropy(model, images, labels)

    fitted = train(model, Recipe(epochs=3, batch_size=24), val=nothing, loss=watch)
    assert fitted.val_accuracy is None
    assert fitted.epoch == 3
    assert not same(bits(model), ends[-1])  # one update after the last look


def test_frozen_parameters_and_their_batch_norms_do_not_move():
    model = network()
    model[0].requires_grad_(False)
    before = bits(model)
    train(model, Recipe(epochs=2, weight_decay=0.1))
    after = bits(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2.weight", "2.bias"}


def test_a_network_without_trainable_parameters_is_refused():
    with pytest.raises(ConfigError, match="at least one trainable parameter, got none"):
        train(network().requires_grad_(False), Recipe(epochs=1))


def test_an_empty_training_set_is_refused():
    nothing = toy.dataset().select(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="expected training images, got none in toy"):
        train(network(), Recipe(epochs=1), data=nothing)


def test_a_loss_that_is_no_number_names_epoch_step_and_rate():
    seen = []

    def breaks(model, images, labels):
        seen.append(1)
        return cross_entropy(model, images, labels) * (math.nan if len(seen) == 6 else 1)

    recipe = Recipe(epochs=3, batch_size=6, lr=0.25, schedule="constant")
    with pytest.raises(Diverged, match=r"epoch 2, step 2 of 4, at learning rate 0\.25"):
        train(network(), recipe, loss=breaks)


def test_weights_that_overflow_in_the_last_step_are_noticed():
    recipe = Recipe(epochs=1, batch_size=24, lr=1e38, schedule="constant", precision="32")
    with pytest.raises(Diverged, match="epoch 1, step 1 of 1"):
        train(network(), recipe, loss=lambda *batch: 1e6 * cross_entropy(*batch))


def test_clipping_bounds_the_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    before = bits(model)
    recipe = Recipe(epochs=1, batch_size=24, lr=1.0, schedule="constant", weight_decay=0.0, clip=1e-3, precision="32")
    train(model, recipe)
    steps = torch.cat([(bits(model)[name] - before[name]).flatten() for name in before])
    assert steps.norm().item() == pytest.approx(1.9e-3, rel=1e-3)  # Nesterov's first step is 1 + momentum gradients


def test_weight_decay_and_schedule_reach_the_optimiser():
    ends = []
    for recipe in (
        Recipe(epochs=2, weight_decay=0.0),
        Recipe(epochs=2, weight_decay=0.1),
        Recipe(epochs=2, weight_decay=0.0, schedule="constant"),
    ):
        model = network()
        train(model, recipe)
        ends.append(bits(model)["2.weight"])
    assert ends[1].norm() < ends[0].norm()
    assert not torch.equal(ends[0], ends[2])


def test_augmentation_changes_what_the_model_sees():
    seen = []

    def watch(model, images, labels):
        seen.append(images)
        return cross_entropy(model, images, labels)

    for name in ("none", "shift"):
        train(network(), Recipe(epochs=1, batch_size=24, augment=name), loss=watch)
    assert not torch.equal(seen[0], seen[1])


def test_a_last_batch_of_one_image_is_dropped():
    sizes = []

    def watch(model, images, labels):
        sizes.append(len(images))
        return cross_entropy(model, images, labels)

    train(network(), Recipe(epochs=1, batch_size=23), loss=watch)
    train(network(), Recipe(epochs=1, batch_size=11), loss=watch)
    assert sizes == [23, 11, 11, 2]


def test_every_image_is_seen_once_per_epoch_in_a_new_order():
    data = toy.dataset()
    data = replace(data, pixels=torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(24, 3, 8, 8))
    seen = []

    def watch(model, images, labels):
        seen.append((images[:, 0, 0, 0] * 255).round().int().tolist())
        assert labels.tolist() == [row // 6 for row in seen[-1]]
        return cross_entropy(model, images, labels)

    train(network(), Recipe(epochs=2, batch_size=24), data=data, loss=watch)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(24))
    assert seen[0] != seen[1]


def test_progress_counts_images_over_all_epochs():
    seen = []
    train(network(), Recipe(epochs=2, batch_size=16), on_step=lambda *step: seen.append(step))
    assert seen == [("epoch 1/2", 16, 48), ("epoch 1/2", 24, 48), ("epoch 2/2", 40, 48), ("epoch 2/2", 48, 48)]


def test_networks_that_flatten_with_view_are_trained_too():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 4)

        def forward(self, images):
            maps = self.conv(images)
            return self.head(maps.view(len(images), -1))

    fitted = train(Views(), Recipe(epochs=6, batch_size=8))
    assert fitted.val_accuracy == 1.0


def test_trained_weights_are_contiguous_and_in_eval_mode():
    model = network()
    train(model, Recipe(epochs=1))
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    assert not model.training


def test_one_cycle_rises_for_a_quarter_and_falls_to_nothing():
    recipe = Recipe(lr=2.0, schedule="one-cycle")
    assert recipe.rate(0.0) == pytest.approx(0.08)
    assert recipe.rate(0.125) == pytest.approx(1.04)
    assert recipe.rate(0.25) == pytest.approx(2.0)
    assert recipe.rate(0.625) == pytest.approx(1.0)
    assert recipe.rate(1.0) == pytest.approx(0.0)


def test_milestones_divide_by_ten():
    recipe = Recipe(lr=1.0, schedule="milestones")
    assert [recipe.rate(at) for at in (0.0, 0.74, 0.75, 0.89, 0.9, 1.0)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_accuracy_by_hand():
    data = toy.dataset(per_class=1)
    wrong = replace(data, labels=torch.tensor([0, 1, 2, 0]))
    model = toy.classifier().train()
    found = accuracy(model, wrong, "cpu", batch_size=3)
    assert found.value == 0.75
    assert (found.count, found.counted, found.unit) == (4, "images", "share")
    assert found.interval is not None
    assert found.interval.low == pytest.approx(0.19412, abs=1e-5)  # exact binomial tables, 3 of 4
    assert found.interval.high == pytest.approx(0.99369, abs=1e-5)
    assert model.training


def test_accuracy_of_nothing_has_a_reason():
    found = accuracy(toy.classifier(), toy.dataset().select(torch.zeros(0, dtype=torch.int64)), "cpu")
    assert found.value is None
    assert "no images" in (found.reason or "")


class Counting(Stepper):
    """Trains nothing and notes which epochs it was asked for."""

    steps = 1

    def __init__(self):
        self.epochs = []

    def batches(self, take, epoch):
        self.epochs.append(epoch)
        yield take(torch.arange(4), torch.Generator())

    def step(self, *_):
        return torch.zeros(())

    def state(self):
        return {}

    def restore(self, state):
        pass

    def facts(self):
        return {}

    def close(self):
        pass


def test_a_stepper_goes_on_where_the_training_before_ended():
    class Stepped(Objective):
        def __init__(self):
            self.made = Counting()

        def __call__(self, *_):
            raise AssertionError

        def stepper(self, *_):
            return self.made

    objective = Stepped()
    train(network(), Recipe(epochs=2), loss=objective, span=Span(3, None))
    assert objective.made.epochs == [3, 4]
