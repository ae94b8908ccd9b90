import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.defense import Moment, Slot, Step
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.bido import BiDO
from mi_audit.nn.dependence import centred, coco_fro, coco_spec, gaussian, hsic, ridge_smoothers, same_class
from mi_audit.nn.freezing import freeze
from mi_audit.train.feeding import Feed
from tests.nn.test_anatomy import plain_cnn, torchvision_net
from tests.toy import dataset

EXAMPLE = torch.zeros(2, 3, 8, 8)


def step(images, labels, taps, seed=0, model=None, logits=None):
    logits = torch.zeros(len(labels), 4) if logits is None else logits
    moment = Moment("main", 0, 1, torch.Generator().manual_seed(seed))
    return Step(model or nn.Identity(), images, labels, logits, taps, F.cross_entropy(logits, labels), moment, None)


def batch(count=12, seed=0):
    """Images, labels and two hidden layers that depend on the images."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 4, 4, generator=rng)
    wide, flat = (torch.randn(48, 20, generator=rng), torch.randn(48, 5, generator=rng))
    first = (images.flatten(1) @ wide).relu().view(count, 5, 2, 2).requires_grad_(True)
    return images, torch.arange(count) % 3, {"first": first, "second": (images.flatten(1) @ flat).requires_grad_(True)}


def pairwise(defense, images, labels, taps, measure=hsic):
    """Both weighted sums, layer by layer."""

    def factor(gram):
        return ridge_smoothers(gram, defense.eps).matrices if measure is hsic else centred(gram).matrices

    pixels, answer = factor(gaussian(images.flatten(1), defense.sigma)), factor(same_class(labels))
    layers = [factor(gaussian(layer.detach().flatten(1), defense.sigma)) for layer in taps.values()]
    explained = sum(measure(pixels, layer).item() for layer in layers)
    return defense.lambda_x * explained, defense.lambda_y * sum(measure(layer, answer).item() for layer in layers)


@pytest.mark.parametrize(("name", "measure"), [("hsic", hsic), ("coco_fro", coco_fro), ("coco_spec", coco_spec)])
@pytest.mark.parametrize("sigma", [5.0, 0.0])
def test_the_term_is_the_weighted_sum_over_the_layers(name, measure, sigma):
    defense = BiDO(measure=name, lambda_x=0.3, lambda_y=0.7, sigma=sigma, eps=1e-3)
    images, labels, taps = batch()
    value, notes = defense.term(step(images, labels, taps))
    explained, labelled = pairwise(defense, images, labels, taps, measure)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(explained - labelled, rel=1e-5)
    assert notes["input"].item() == pytest.approx(explained, rel=1e-5)
    assert notes["label"].item() == pytest.approx(labelled, rel=1e-5)
    assert notes["skipped"] == 0
    assert not any(note.requires_grad for note in notes.values())


def test_two_pictures_by_hand():
    # K_Y = I, so K_Y H = H and R = 1 / (1 + 2 eps) on its one direction; for the others 1 - k in place of 1
    images, layer = torch.tensor([[0.0], [1.0]]).view(2, 1, 1, 1), torch.tensor([[0.0], [3.0]], requires_grad=True)
    value, notes = BiDO(lambda_x=2.0, lambda_y=3.0, sigma=1.0, eps=0.25).term(
        step(images, torch.tensor([0, 1]), {"layer": layer})
    )
    pixel, hidden = 1 - math.exp(-1 / 2), 1 - math.exp(-9 / 2)
    pixel, hidden, label = pixel / (pixel + 0.5), hidden / (hidden + 0.5), 1 / 1.5
    assert notes["input"].item() == pytest.approx(2 * pixel * hidden, rel=1e-6)
    assert value.item() == pytest.approx(2 * pixel * hidden - 3 * hidden * label, rel=1e-6)


def test_the_baseline_deals_the_pictures_of_the_layers_out_anew():
    defense = BiDO(eps=1e-3)
    images, labels, taps = batch()
    notes = defense.term(step(images, labels, taps, seed=5)).notes
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    dealt = {name: layer[order] for name, layer in taps.items()}
    assert notes["input_permuted"].item() == pytest.approx(pairwise(defense, images, labels, dealt)[0], rel=1e-5)
    assert notes["input_permuted"] < notes["input"]


def test_the_gradient_lowers_the_dependence_on_pixels_and_raises_that_on_labels():
    images, labels, _ = batch()
    for sign, defense in ((-1, BiDO(lambda_x=1.0, lambda_y=0.0)), (1, BiDO(lambda_x=0.0, lambda_y=1.0))):
        layer = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        value, before = defense.term(step(images, labels, {"layer": layer}))
        value.backward()
        with torch.no_grad():
            layer -= 0.1 * layer.grad / layer.grad.norm()
        after = defense.term(step(images, labels, {"layer": layer})).notes
        note = "input" if sign < 0 else "label"
        assert sign * (after[note] - before[note]) > 0


def test_layers_that_do_not_learn_in_this_phase_add_nothing():
    images, labels, taps = batch()
    alone = BiDO().term(step(images, labels, {"second": taps["second"]}))
    both = BiDO().term(step(images, labels, {"first": taps["first"].detach(), "second": taps["second"]}))
    assert both.value == alone.value
    assert BiDO().term(step(images, labels, {name: layer.detach() for name, layer in taps.items()})) is None


def test_a_single_picture_has_no_dependence():
    images, labels, taps = batch(1)
    assert BiDO().term(step(images, labels, taps)) is None


@pytest.mark.parametrize("measure", ["hsic", "coco_fro", "coco_spec"])
def test_a_layer_that_is_not_finite_is_skipped_and_counted(measure):
    images, labels, taps = batch()
    sound = BiDO(measure=measure).term(step(images, labels, {"second": taps["second"]}))
    broken = taps["first"].detach().clone()
    broken[3, 0, 0, 0] = math.inf
    broken.requires_grad_(True)
    value, notes = BiDO(measure=measure).term(step(images, labels, {"first": broken, "second": taps["second"]}))
    assert notes["skipped"] == 1
    assert value.item() == pytest.approx(sound.value.item())
    value.backward()
    assert not broken.grad.any() and taps["second"].grad.isfinite().all()


@pytest.mark.parametrize("measure", ["hsic", "coco_fro"])
@pytest.mark.parametrize("sigma", [5.0, 0.0])
def test_no_step_waits_for_the_device(measure, sigma):
    """Tensors without memory have no value to wait for: to read one on the host is an error."""
    layer = torch.zeros(8, 5, device="meta", requires_grad=True)
    images, labels = torch.zeros(8, 3, 4, 4, device="meta"), torch.zeros(8, dtype=torch.int64, device="meta")
    now = step(images, labels, {"layer": layer}, logits=torch.zeros(8, 4, device="meta"))
    value, notes = BiDO(measure=measure, sigma=sigma).term(now)
    value.backward()
    assert {each.device.type for each in (value, layer.grad, *notes.values())} == {"meta"}


def test_taps_the_stages_that_learn():
    net, example = torchvision_net("resnet18")
    assert tuple(BiDO().taps(net, example)) == ("layer1", "layer2", "layer3", "layer4")
    freeze(net, "60%", example)
    assert tuple(BiDO().taps(net, example)) == ("layer3", "layer4")  # 4 of 8 blocks are frozen: up to layer2
    assert tuple(BiDO(layers="layer4.0, layer1").taps(net, example)) == ("layer4.0",)
    freeze(net, "linear-probe", example)
    with pytest.raises(ConfigError, match="freeze less"):
        BiDO().taps(net, example)


def test_the_label_term_needs_pairs_of_one_class():
    """With plain batches of many classes, clustered and scattered features score alike; with balanced ones not."""
    rng = torch.Generator().manual_seed(0)
    scattered, images = torch.randn(64, 32, generator=rng), torch.rand(64, 1, 2, 2, generator=rng)
    defense = BiDO(lambda_x=0.0, lambda_y=1.0, eps=1e-3)

    def gain(labels):
        clustered = torch.randn(64, 32, generator=rng)[labels] + 0.1 * scattered
        scores = [
            defense.term(step(images, labels, {"layer": layer.requires_grad_(True)}, logits=torch.zeros(64, 64)))
            for layer in (clustered, scattered.clone())
        ]
        return (scores[0].notes["label"] / scores[1].notes["label"]).item()

    assert gain(torch.arange(64) // 4) > 1.3 * gain(torch.arange(64))


def course(share):
    """What is missing to the largest possible `label` in every step of a short training with `share` of the base loss.

    It is lambda_y (classes - 1) per layer: 0.5 * 3 * 4 = 6.
    """
    torch.manual_seed(0)
    data, defense, net, caught, told = dataset(per_class=16), BiDO(), plain_cnn(), {}, []
    for name in defense.taps(net, EXAMPLE):
        net.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: caught.update({name: output}))
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    feed = Feed(data, 16, "none", torch.contiguous_format, 0, "cpu", defense.images_per_class)
    for number in range(24):
        images, labels, *_ = list(feed.epoch(number // 4))[number % 4]
        logits = net(images)
        now = step(images, labels, dict(caught), seed=number, model=net, logits=logits)
        value, notes = defense.term(now)
        assert value.isfinite() and all(note.isfinite() for note in notes.values())
        optimiser.zero_grad()
        (share * now.base + value).backward()
        optimiser.step()
        told.append(6 - notes["label"].item())
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    return told


def test_training_with_the_term_makes_layers_tell_more_about_the_label():
    for share in (0.0, 1.0):
        missing = course(share)
        assert 0 < sum(missing[-4:]) < 0.4 * sum(missing[:4])


def test_asks_for_four_pictures_per_class_and_fills_the_term_alone():
    assert BiDO().images_per_class == 4 and BiDO(images_per_class=None).images_per_class is None
    assert BiDO().slots == {Slot.TERM}
    assert (BiDO().measure, BiDO().lambda_x, BiDO().lambda_y, BiDO().sigma, BiDO().eps) == ("hsic", 0.05, 0.5, 5, 1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_x": 0.0, "lambda_y": 0.0}, "without weights there is no defense"),  # the published script's default
        ({"lambda_x": -0.1}, "expected weights >= 0"),
        ({"lambda_y": math.nan}, "expected finite numbers as lambda_y"),
        ({"sigma": -1.0}, "expected sigma >= 0"),
        ({"eps": 0.0}, "eps > 0"),
        ({"images_per_class": 1}, "expected images_per_class of 2 or more"),
        ({"layers": " , "}, "expected layers=auto or names"),
    ],
)
def test_refuses_settings_that_defend_nothing(settings, message):
    with pytest.raises(ConfigError, match=message):
        BiDO(**settings)


def test_says_when_most_layers_added_nothing():
    images, labels, taps = batch()
    assert BiDO().term(step(images, labels, taps)).notes["layers"] == 2
    assert BiDO().shortfall({"skipped": 1.0, "layers": 2.0, "input": 1.0, "input_permuted": 1.0}) == ""
    assert "1.3 of 2 hidden layers had no usable matrix" in BiDO().shortfall({"skipped": 1.3, "layers": 2.0})
    assert "raise bido.eps, which is 1e-05" in BiDO().shortfall({"skipped": 2.0, "layers": 2.0})
    assert BiDO().shortfall({}) == ""  # a resumed training has no notes of what was done before
