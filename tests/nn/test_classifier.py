import pytest
import torch
import torchvision
from torch import nn

from mi_audit.core.errors import TargetError
from mi_audit.nn.classifier import Classifier


def flat(outputs: int = 4, channels: int = 3, size: int = 2) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, outputs))


def wrap(net: nn.Module, **settings: object) -> Classifier:
    return Classifier(net, **{"size": 2, "channels": 3, "mean": (0.0,), "std": (1.0,), **settings})


def test_normalises_each_channel_by_its_own_numbers():
    prepared = wrap(flat(), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)).prepare(torch.full((1, 3, 2, 2), 0.6))
    assert torch.allclose(prepared[0, :, 0, 0], torch.tensor([1.0, 0.4, 0.15]))


def test_one_number_normalises_all_channels():
    assert torch.allclose(wrap(flat(), mean=(0.5,), std=(0.25,)).prepare(torch.ones(1, 3, 2, 2)), torch.tensor(2.0))


def test_reducing_averages_all_pixels_instead_of_skipping_some():
    stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 3, 8, 8)
    assert torch.allclose(wrap(flat()).prepare(stripes), torch.tensor(0.5), atol=0.05)


def test_images_of_the_right_size_are_not_touched():
    images = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wrap(flat()).prepare(images), images)


def test_grey_is_repeated():
    grey = torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wrap(flat()).prepare(grey), grey.expand(1, 3, 2, 2))


def test_rgb_becomes_luminance():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.allclose(wrap(flat(channels=1), channels=1).prepare(red), torch.tensor(0.299))


def test_channels_that_cannot_be_converted_are_refused():
    with pytest.raises(TargetError, match="expected 3-channel images, got 4"):
        wrap(flat())(torch.zeros(1, 4, 2, 2))


def test_order_says_which_output_belongs_to_each_class():
    net, images = flat(), torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wrap(net, order=(2, 0, 3, 1))(images), net(images)[:, [2, 0, 3, 1]])


def test_an_order_that_is_no_permutation_is_refused():
    with pytest.raises(TargetError, match="expected an order of 4 outputs"):
        wrap(flat(), order=(0, 0, 1, 2))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = flat()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.flatten(1), self.net(images)


def test_a_tuple_needs_an_index():
    with pytest.raises(TargetError, match="expected logits, got a tuple of 2 from Pair"):
        wrap(Pair())
    assert wrap(Pair(), logits_index=-1).num_classes == 4


def test_head_is_the_last_linear_layer_that_was_executed():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 4))
    assert wrap(net).head is net[3]


def test_head_of_a_network_that_pools_logits_is_its_last_convolution():
    net = torchvision.models.squeezenet1_1(num_classes=7)
    classifier = wrap(net, size=32)
    assert classifier.head is net.classifier[1]
    assert classifier.num_classes == 7


def test_layers_registered_after_the_head_but_not_used_are_not_the_head():
    net = flat()
    net.add_module("unused", nn.Identity())
    net[1].add_module("spare", nn.Linear(3, 4))
    assert wrap(net).head is net[1]


def test_state_dict_holds_the_network_only():
    assert set(wrap(flat()).state_dict()) == {"net.1.weight", "net.1.bias"}


def test_finding_the_head_leaves_modes_and_statistics_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    net.train()
    net[1].eval()
    wrap(net)
    assert net[0].training and not net[1].training
    assert net[1].num_batches_tracked == 0


def test_a_network_for_other_images_is_refused():
    with pytest.raises(TargetError, match="expected a network that accepts 3x5x5 images"):
        wrap(flat(), size=5)


def test_a_feature_map_is_no_logits():
    with pytest.raises(TargetError, match="expected one row of logits per image"):
        wrap(nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize("std", [(0.0,), (1.0, -1.0, 1.0)])
def test_a_standard_deviation_must_be_positive(std):
    with pytest.raises(TargetError, match="positive standard deviation"):
        wrap(flat(), std=std)


def test_two_means_for_three_channels_are_refused():
    with pytest.raises(TargetError, match="expected 1 or 3 numbers, got mean"):
        wrap(flat(), mean=(0.5, 0.5))


def test_logits_are_differentiable_in_images_of_another_size():
    images = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wrap(flat())(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [0, 2049])
def test_an_input_size_out_of_range_is_refused(size):
    with pytest.raises(TargetError, match=f"expected an input size from 1 to 2048 pixels, got {size}"):
        wrap(flat(), size=size)


def test_images_that_do_not_fit_into_memory_are_an_error_of_the_model(monkeypatch):
    def full(*_shape, **_options):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(TargetError, match="got the error 'not enough memory'; correct --input-size"):
        wrap(flat())


def test_resizes_half_precision_images():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model = Classifier(net, size=4, channels=3, mean=(0.5,), std=(0.5,))
    images = torch.full((2, 3, 8, 8), 0.5)
    assert model(images.bfloat16()).equal(model(images))
