import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import DataError, Diverged
from mi_audit.nn.adversarial import NonSaturatingR1, WassersteinGP
from mi_audit.nn.adversarial_targeted import ConditionalHinge
from mi_audit.nn.gan import MinibatchStdDev, Networks
from mi_audit.nn.views import Chain
from mi_audit.train.gan import ADAPTING, GanSettings, _Contest, fit, follow
from tests import toy

OBJECTIVES = [WassersteinGP(critic_steps=2), NonSaturatingR1(every=3, images=4)]


class Interrupted(Exception):
    pass


def networks(critic: nn.Module | None = None) -> Networks:
    """The smallest generator and critic of 8x8 images with every kind of layer that matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(
            *(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2))),
            *(nn.ConvTranspose2d(8, 3, 4, 4), nn.Sigmoid()),
        )
        critic = critic or nn.Sequential(
            *(nn.Conv2d(3, 8, 4, 4), nn.LeakyReLU(0.2), MinibatchStdDev(), nn.Conv2d(9, 1, 2), nn.Flatten(0)),
        )
        return Networks(generator, critic, 4)


def settings(objective, **more) -> GanSettings:
    steps = {"steps": 7, "batch_size": 8, "save_every": 2, "average": 0.5} | more
    return GanSettings(objective=objective, **steps)


def train(recipe, *, public=None, start=None, on_step=lambda *_: None, seed=1, **more) -> Networks:
    public = toy.dataset() if public is None else public
    start = start or networks()
    return fit(start, public, recipe, seed=seed, device="cpu", on_step=on_step, **more)


def bits(fitted: Networks) -> list[torch.Tensor]:
    return [t.clone() for network in fitted[:2] for t in network.state_dict().values()]


def same(one: Networks, other: Networks) -> bool:
    return all(torch.equal(a, b) for a, b in zip(bits(one), bits(other), strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(objective):
    recipe = settings(objective, shift=0.1, brightness=0.2, flips=True)
    before = torch.get_rng_state()
    first = train(recipe)
    assert same(first, train(recipe))
    assert not same(first, train(recipe, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, objective, precision):
    recipe = settings(objective, precision=precision, shift=0.1)
    expected = train(recipe)

    def interrupt(stage, done, total):
        if done == 6:
            raise Interrupted

    path = tmp_path / "prior.pt"
    with pytest.raises(Interrupted):
        train(recipe, on_step=interrupt, checkpoint=path)
    seen = []
    found = train(recipe, on_step=lambda *step: seen.append(step), checkpoint=path)
    assert seen == [("prior", 5, 7), ("prior", 6, 7), ("prior", 7, 7)]
    assert same(found, expected)
    assert not path.exists()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_generated_images_move_to_the_mean_colour_of_the_public_ones(objective):
    colour = torch.tensor([220, 40, 130], dtype=torch.uint8)[:, None, None]
    public = Dataset("one colour", colour.expand(16, 3, 8, 8), torch.zeros(16, dtype=torch.int64), ("a",), "f")
    start = networks()
    noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    goal = colour.flatten() / 255
    before = (start.generator(noise).mean(dim=(0, 2, 3)) - goal).abs().mean()
    fitted = train(settings(objective, steps=60, lr=0.02, average=0.8), public=public, start=start)
    after = (fitted.generator(noise).mean(dim=(0, 2, 3)) - goal).abs().mean()
    assert after < before / 2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_critic_learns_to_tell_the_public_images(objective):
    start = networks()
    fitted = train(settings(objective, steps=30, lr=0.01), start=start)
    real = fitted.critic(toy.dataset().images()).mean()
    noise = fitted.critic(torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))).mean()
    assert real > noise + 0.1


def test_the_generator_moves_only_when_it_is_due():
    start = networks()
    first = [weight.clone() for weight in start.generator.parameters()]
    train(settings(WassersteinGP(critic_steps=3), steps=2), start=start)
    assert all(torch.equal(a, b) for a, b in zip(first, start.generator.parameters(), strict=True))
    start = networks()
    train(settings(WassersteinGP(critic_steps=3), steps=3), start=start)
    assert not all(torch.equal(a, b) for a, b in zip(first, start.generator.parameters(), strict=True))


def test_a_frozen_part_of_the_result_needs_no_gradient_and_is_in_eval_mode():
    for network in train(settings(NonSaturatingR1()))[:2]:
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())


def test_progress_counts_every_step():
    seen = []
    train(settings(NonSaturatingR1(), steps=3), on_step=lambda *step: seen.append(step))
    assert seen == [("prior", 1, 3), ("prior", 2, 3), ("prior", 3, 3)]


class Broken(nn.Module):
    """A critic whose score is no number from its eighth batch on: the first of the third step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, images):
        self.calls += self.training
        return images.mean(dim=(1, 2, 3)) * self.weight * (math.nan if self.calls > 7 else 1.0)


def test_a_loss_that_is_no_number_names_its_step():
    recipe = settings(NonSaturatingR1(every=100), steps=9, lr=1e-3, save_every=5)
    with pytest.raises(Diverged, match=r"at step 3 of 9 \(learning rate 0\.001\)"):
        train(recipe, start=networks(Broken()))


def test_too_few_public_images_are_refused():
    with pytest.raises(DataError, match="at least two public images, got 1 in toy"):
        train(settings(NonSaturatingR1()), public=toy.dataset().select(torch.tensor([0])))


class Recorder(nn.Module):
    """A critic that keeps what it was shown: per step real images, generated ones, and the latter for the generator."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.shown = []

    def forward(self, images):
        self.shown.append(images.detach().clone())
        return images.mean(dim=(1, 2, 3)) * self.weight


def shown(public, steps, **more) -> list[torch.Tensor]:
    critic = Recorder()
    train(settings(NonSaturatingR1(every=1000), steps=steps, **more), public=public, start=networks(critic))
    return critic.shown[:2] + critic.shown[3:]  # without the penalty of the first step


def test_every_public_image_is_used_once_per_epoch_in_a_new_order():
    pixels = torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(24, 3, 8, 8)
    real = torch.cat(shown(replace(toy.dataset(), pixels=pixels), steps=6)[::3])
    rows = (real[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(rows[:24]) == sorted(rows[24:]) == list(range(24))
    assert rows[:24] != rows[24:]


@pytest.mark.parametrize("flips", [True, False])
def test_public_images_are_mirrored_when_that_is_allowed(flips):
    ramp = torch.arange(8, dtype=torch.uint8).expand(24, 3, 8, 8)
    real = torch.cat(shown(replace(toy.dataset(), pixels=ramp), steps=6, flips=flips)[::3])
    mirrored = real[:, 0, 0, 0] > real[:, 0, 0, 7]
    assert bool(mirrored.any()) == flips
    assert not mirrored.all()


def test_the_critic_sees_every_image_through_the_same_kind_of_distortion():
    white = torch.full((24, 3, 8, 8), 255, dtype=torch.uint8)
    public = replace(toy.dataset(), pixels=white)
    for images in shown(public, steps=1, shift=0.25):
        black = (images == 0).all(dim=1)
        assert black.any()
        assert not black.all()
    assert not any((images == 0).any() for images in shown(public, steps=1))


class Conditional(nn.Module):
    """Keeps the labels it is given beside its input, and hands the input to `inner`."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.labels = inner, []

    def __deepcopy__(self, memo):
        return Conditional(copy.deepcopy(self.inner, memo))

    def forward(self, given, labels):
        self.labels.append(labels.tolist())
        return self.inner(given)


def test_networks_that_know_classes_are_told_the_labels():
    plain, public = networks(), toy.dataset()
    start = Networks(Conditional(plain.generator), Conditional(plain.critic), 4, classes=4)
    logits = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    objective = ConditionalHinge(logits=logits, fingerprint="f", view=Chain(()), critic_steps=1)
    train(settings(objective, steps=3, batch_size=24), public=public, start=start)
    asked, judged = start.generator.labels, start.critic.labels
    assert len(asked) == 3 and {label for row in asked for label in row} == {0, 1, 2, 3}
    assert judged[1::3] == judged[2::3] == asked  # generated images, for the critic and for the generator
    assert all(sorted(row) == public.labels.tolist() for row in judged[::3])


def test_further_batches_are_drawn_independently_and_labels_follow_their_images():
    pixels = torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(24, 3, 8, 8)
    public, seen = replace(toy.dataset(), pixels=pixels), []

    class Watching(NonSaturatingR1):
        real_batches = 3

        def critic_objective(self, judge, round):
            seen.append(round)
            return super().critic_objective(judge, round)

    train(settings(Watching(), steps=3), public=public)
    for round in seen:
        first, *more = ((batch[:, 0, 0, 0] * 255).round().long() for batch in (round.seen_real, *round.more_real))
        assert torch.equal(first, round.rows) and torch.equal(round.labels, public.labels[first])
        assert len({tuple(rows.tolist()) for rows in (first, *more)}) == 3
    assert len({row for round in seen for row in round.rows.tolist()}) == 24


def test_dither_fills_the_steps_of_8_bit_and_stays_in_range():
    white = replace(toy.dataset(), pixels=torch.full((24, 3, 8, 8), 255, dtype=torch.uint8))
    real = torch.cat(shown(white, steps=3, dither=1 / 256)[::3])
    assert real.max() <= 1 and 1 - 1 / 256 <= real.min() < 1 - 0.9 / 256


def test_the_penalty_reaches_the_critic():
    assert not same(train(settings(NonSaturatingR1(gamma=1.0))), train(settings(NonSaturatingR1(gamma=0.0))))


def test_the_averaged_generator_is_returned_and_not_the_last_one():
    start = networks()
    fitted = train(settings(NonSaturatingR1(), average=0.9), start=start)
    last = start.generator.eval()(torch.ones(1, 4))
    assert not torch.equal(fitted.generator(torch.ones(1, 4)), last)


def test_the_average_follows_by_its_formula():
    average, network = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    with torch.no_grad():
        network.weight.fill_(11.0)
        network.running_mean.fill_(5.0)
        network.num_batches_tracked.fill_(7)
    follow(average, network, decay=0.9, update=10_000)
    torch.testing.assert_close(average.weight.detach(), torch.tensor([0.9 * 1 + 0.1 * 11]))
    torch.testing.assert_close(average.running_mean, torch.tensor([0.1 * 5]))
    assert average.num_batches_tracked == 7
    assert network.weight == 11.0


def test_the_first_updates_weigh_more():
    average, network = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(average.weight)
    nn.init.ones_(network.weight)
    follow(average, network, decay=0.999, update=1)
    torch.testing.assert_close(average.weight.detach(), torch.tensor([[9 / 11]]))


def test_without_a_chance_no_image_is_distorted_and_with_half_a_chance_half_are():
    public = replace(toy.dataset(per_class=50), pixels=torch.full((200, 3, 8, 8), 100, dtype=torch.uint8))

    def share(chance):
        real = shown(public, steps=1, batch_size=200, brightness=0.5, chance=chance)[0]
        return (real.flatten(1) != 100 / 255).any(dim=1).double().mean()

    assert share(0.0) == 0
    assert share(0.5) == pytest.approx(0.5, abs=0.15)
    assert share(1.0) > 0.9


@pytest.mark.parametrize(("bias", "sign"), [(1.0, 1), (-9.0, -1)])
def test_distortions_come_as_the_critic_gets_sure_of_the_public_images(bias, sign):
    class Biased(Recorder):
        def forward(self, images):
            return super().forward(images) + bias

    recipe = settings(NonSaturatingR1(every=1000), brightness=0.1, chance=0.5, adapt=0.6)
    contest = _Contest(networks(Biased()), toy.dataset(), recipe, 0, "cpu")
    for step in range(3):
        contest.advance(step)
    assert contest.chance.item() == pytest.approx(0.5 + sign * 3 * 8 / ADAPTING)
    assert contest.state(3)["chance"] == contest.chance


def test_the_generator_s_own_penalty_reaches_it():
    class Heavy(NonSaturatingR1):
        def generator_penalty(self, generator, *_):
            return 100 * sum(weight.square().sum() for weight in generator.parameters())

    assert not same(train(settings(NonSaturatingR1())), train(settings(Heavy())))


def test_noise_inside_a_generator_repeats_with_the_seed():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(len(x), self.out_features)

    def start():
        made = networks()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            made.generator[0] = Noisy(4, 32)
        return made

    recipe = settings(NonSaturatingR1())
    before = torch.get_rng_state()
    assert same(train(recipe, start=start()), train(recipe, start=start()))
    assert torch.equal(torch.get_rng_state(), before)
