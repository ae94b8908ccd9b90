import copy
import io
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from mi_audit.audit.composition import compose
from mi_audit.core.defense import Moment, Step
from mi_audit.core.errors import ConfigError
from mi_audit.defenses import trap_mid
from mi_audit.defenses.trap_mid import TrapMID
from mi_audit.nn import freezing
from mi_audit.train.defended import fit_defended
from mi_audit.train.recipe import Recipe
from tests.nn.test_anatomy import plain_cnn
from tests.nn.test_shortcuts import same, state
from tests.toy import classifier, dataset

EXAMPLE = torch.zeros(2, 3, 8, 8)


def ready(net=None, **settings):
    """A defense, a network in training mode and what the defense trains beside it."""
    torch.manual_seed(0)
    net, defense = net or plain_cnn(), TrapMID(**settings)
    freezing.train_mode(net)
    return defense, net, defense.companion(net, 4, EXAMPLE)


def step(net, doors, number=0, rows=slice(0, 24)):
    data = dataset()
    images, labels = data.images(rows), data.labels[rows]
    logits = net(images).float()
    moment = Moment("main", 0, 1, torch.Generator().manual_seed(number))
    return Step(net, images, labels, logits, {}, F.cross_entropy(logits, labels), moment, doors)


@contextmanager
def watched(module):
    seen = []
    hook = module.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].detach(), output)))
    yield seen
    hook.remove()


def test_the_loss_is_shared_between_the_images_and_the_trapped_ones():
    defense, net, doors = ready(classifier(), augmentation="none", opacity=0.1, weight=0.3)
    now = step(net, doors)
    classes = copy.deepcopy(doors).deal(24, torch.Generator().manual_seed(0))
    before = doors.triggers[classes].clone()
    with watched(doors.discriminator) as judged:
        term = defense.term(now)
    assert torch.equal(judged[0][0], now.images)  # real ones first
    torch.testing.assert_close(judged[1][0], 0.9 * now.images + 0.1 * before)
    trapped = 0.9 * now.images + 0.1 * doors.triggers[classes]  # by the triggers after their step
    missed = F.cross_entropy(net(trapped), classes)
    torch.testing.assert_close(now.base + term.value, 0.7 * now.base + 0.3 * missed)
    torch.testing.assert_close(term.notes["trap_loss"], missed.detach())


def test_triggers_step_towards_their_class_and_what_looks_real():
    defense, net, doors = ready(classifier(), augmentation="none", lr=1e-30)
    doors.triggers.fill_(0.5)
    torch.nn.init.normal_(doors.discriminator[1].weight)
    now = step(net, doors, rows=slice(0, 2))
    classes = copy.deepcopy(doors).deal(2, torch.Generator().manual_seed(0))
    defense.term(now)
    weight, judge = net[1].weight.detach(), doors.discriminator[1].weight.detach()
    trapped = (0.98 * now.images + 0.02 * 0.5).flatten(1)
    wrong = (trapped @ weight.T).softmax(dim=1) - F.one_hot(classes, 4)
    doubt = (trapped @ judge.T + doors.discriminator[1].bias.detach()).sigmoid() - 1
    expected = 0.5 - 0.01 * (wrong @ weight + doubt @ judge).sign()
    assert expected.unique().numel() > 1
    torch.testing.assert_close(doors.triggers[classes].flatten(1), expected)


def test_only_the_triggers_of_the_batch_move():
    defense, net, doors = ready()
    before = doors.triggers.clone()
    classes = copy.deepcopy(doors).deal(2, torch.Generator().manual_seed(0))
    defense.term(step(net, doors, rows=slice(0, 2)))
    moved = (doors.triggers != before).flatten(1).any(dim=1)
    assert moved.nonzero().flatten().tolist() == sorted(classes.tolist())
    assert (doors.triggers - before).abs().max() <= 0.01 + 1e-6


def test_every_class_is_trapped_as_often():
    defense, net, doors = ready(augmentation="none", opacity=0.5)
    with watched(net) as seen:
        defense.term(now := step(net, doors))
    trapped, _ = seen[-1]
    distance = torch.cdist((2 * trapped - now.images).flatten(1), doors.triggers.flatten(1))
    assert distance.argmin(dim=1).bincount().tolist() == [6, 6, 6, 6]


def test_statistics_see_the_trapped_batch_once_and_no_search():
    defense, net, doors = ready()
    now = step(net, doors)
    twin = copy.deepcopy(net)
    with watched(net) as seen:
        defense.term(now)
    twin(seen[-1][0])
    assert len(seen) == 2 and same(state(net), state(twin))
    assert all(module.training for module in net.modules())
    assert doors.discriminator[1].num_batches_tracked == 2  # the real and the trapped images of its own step


def test_search_and_training_see_different_views():
    defense, net, doors = ready(classifier(), opacity=1e-4, augmentation="shift")
    now = step(net, doors)
    with watched(net) as seen:
        defense.term(now)
    (searched, _), (trained, _) = seen
    for one, other in ((searched, trained), (searched, now.images), (trained, now.images)):
        assert ((one - other).abs().flatten(1).amax(dim=1) > 0.05).float().mean() > 0.9  # triggers alone change 1e-4


def test_the_network_learns_from_the_term_alone():
    defense, net, doors = ready()
    now = step(net, doors)
    twin, classes = copy.deepcopy(net), copy.deepcopy(doors).deal(24, torch.Generator().manual_seed(0))
    with watched(net) as seen:
        term = defense.term(now)
    assert all(parameter.grad is None for parameter in net.parameters())
    term.value.backward()
    loss = 0.2 * (F.cross_entropy(twin(seen[-1][0]), classes) - F.cross_entropy(twin(now.images), now.labels))
    loss.backward()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_resumed_run_goes_on_bit_for_bit():
    defense, net, doors = ready()
    defense.term(step(net, doors, 0, slice(0, 6)))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "doors": doors.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, map_location="cpu", weights_only=True)
    _, other, resumed = ready(plain_cnn())
    other.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["doors"])
    values = [defense.term(step(*pair, 1, slice(6, 12))).value for pair in ((net, doors), (other, resumed))]
    assert torch.equal(*values)
    one, two = doors.state_dict(), resumed.state_dict()
    extra = [mapping.pop("_extra_state") for mapping in (one, two)]
    assert same(one, two) and torch.equal(extra[0]["stack"], extra[1]["stack"])
    momentum = [[row["momentum_buffer"] for row in part["optimiser"]["state"].values()] for part in extra]
    assert all(torch.equal(*pair) for pair in zip(*momentum, strict=True))


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    def train(checkpoint, on_step):
        torch.manual_seed(0)
        net, data = plain_cnn(), dataset()
        recipe = Recipe(epochs=3, batch_size=8, precision="32")
        parts = {"trap-mid": TrapMID()}
        fit_defended(net, data, data, recipe, parts, seed=0, device="cpu", on_step=on_step, checkpoint=checkpoint)
        return state(net)

    def interrupt(label, done, total):
        if label == "epoch 3/3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "unfinished", interrupt)
    assert list(tmp_path.iterdir())
    seen = []
    resumed = train(tmp_path / "unfinished", lambda label, *_: seen.append(label))
    assert set(seen) == {"epoch 3/3"}
    assert same(resumed, train(None, lambda *_: None))


def test_a_frozen_network_stays_frozen_and_gets_its_trapdoors_in_the_rest():
    net = plain_cnn()
    freezing.freeze(net, "60%", EXAMPLE)
    defense, net, doors = ready(net)
    public, critic = state(net), state(doors.discriminator)
    defense.term(step(net, doors)).value.backward()
    learns = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert learns and learns == {name for name in learns if int(name.split(".")[0]) >= 9}
    assert all(torch.equal(net.state_dict()[name], public[name]) for name in public if int(name.split(".")[0]) < 9)
    assert not net[1].training and net[10].training
    assert not torch.equal(doors.discriminator[0].weight, critic["0.weight"])


def test_the_classifier_learns_the_trapdoors_beside_its_task():
    defense, net, doors = ready(plain_cnn(width=8, depth=3), opacity=0.2, weight=0.5)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    first = last = None
    for number in range(80):
        now = step(net, doors, number)
        term = defense.term(now)
        optimiser.zero_grad()
        (now.base + term.value).backward()
        optimiser.step()
        last = term.notes["trap_loss"].item()
        first = first or last
    assert last < 0.5 * first
    assert (now.logits.argmax(dim=1) == now.labels).float().mean() > 0.9


@pytest.mark.parametrize("wrong", [{"opacity": 0.0}, {"weight": 1.0}, {"trigger_step": 0.0}, {"momentum": 1.0}])
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"expected .*{next(iter(wrong))}"):
        TrapMID(**wrong)


def test_says_that_it_is_a_backdoor():
    assert "backdoor" in trap_mid.__doc__ and "backdoors the own classifier" in TrapMID.__doc__
    assert TrapMID.kind == "deception"


def test_says_when_there_are_no_trapdoors():
    """Guessing one of 4 classes has the loss log 4 = 1.386; half the way is 0.693."""
    defense, net, doors = ready(classifier())
    assert defense.term(step(net, doors)).notes["guessing_loss"].item() == pytest.approx(1.3863, abs=1e-4)
    assert defense.shortfall({"trap_loss": 0.69, "guessing_loss": 1.386}) == ""
    said = defense.shortfall({"trap_loss": 0.70, "guessing_loss": 1.386})
    assert "trap_loss 0.70, guessing has 1.39" in said and "trap-mid.opacity, which is 0.02" in said
    assert defense.shortfall({}) == ""  # a resumed training has no notes of what was done before


def test_triggers_are_blended_with_what_midre_has_erased():
    """As its deviations say: a part of the data comes before every part of the loss."""
    assert any("MIDRE" in deviation and "never erased" in deviation for deviation in TrapMID.deviations)
    assert list(compose("trap-mid+midre", {}).parts) == ["midre", "trap-mid"]
