import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.train.augment import DRAWS, augment, distorted, mirrored


def ramp(size: int = 8) -> torch.Tensor:
    return torch.linspace(0, 1, size * size).view(1, 1, size, size).repeat(1, 3, 1, 1)


def numbers(**changed: float) -> torch.Tensor:
    names = ("angle", "zoom", "right", "down", "flip", "brightness")
    return torch.tensor([[changed.get(name, 0.5) for name in names]])


@pytest.mark.parametrize("name", ["none", "shift", "faces"])
def test_the_middle_of_every_range_changes_nothing(name):
    torch.testing.assert_close(augment(ramp(), numbers(), name), ramp(), atol=1e-5, rtol=0)


def test_faces_are_mirrored_and_digits_are_not():
    flipped = augment(ramp(), numbers(flip=0.2), "faces")
    torch.testing.assert_close(flipped, ramp().flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(augment(ramp(), numbers(flip=0.2), "shift"), ramp(), atol=1e-5, rtol=0)


def test_brightness_by_hand():
    brighter = augment(ramp() / 2, numbers(brightness=1.0), "faces")
    torch.testing.assert_close(brighter, ramp() / 2 * 1.2, atol=1e-5, rtol=0)


def test_a_shift_moves_by_its_share_of_the_side():
    image = torch.zeros(1, 1, 100, 100)
    image[..., 50, 50] = 1.0
    moved = augment(image, numbers(right=1.0, down=0.0), "shift")  # 6 % of 100 pixels, either way
    assert moved[0, 0].flatten().argmax().item() == 56 * 100 + 44


def test_a_rotation_keeps_the_centre_and_turns_by_its_angle():
    image = torch.zeros(1, 1, 65, 65)
    image[..., 32, 32:] = 1.0
    turned = augment(image, numbers(angle=1.0), "shift")[0, 0]
    assert turned[32, 32] > 0.5
    rows = turned[:, 60].argmax().item() - 32
    assert abs(rows) == 4  # 28 tan(8 degrees) = 3.9


def test_a_rotation_does_not_stretch():
    image = torch.zeros(1, 1, 65, 65)
    image[..., 12:53, 12:53] = 1.0
    for change in ({"angle": 1.0}, {"angle": 1.0, "flip": 0.0}):
        assert augment(image, numbers(**change), "faces").sum().item() == pytest.approx(41 * 41, rel=0.01)


@given(st.integers(0, 10_000), st.sampled_from(["shift", "faces"]))
def test_augmented_images_stay_images_and_each_depends_on_its_own_numbers(seed, name):
    rng = torch.Generator().manual_seed(seed)
    images, uniform = torch.rand(3, 1, 8, 8, generator=rng), torch.rand(3, DRAWS, generator=rng)
    together = augment(images, uniform, name)
    assert together.min() >= 0
    assert together.max() <= 1
    torch.testing.assert_close(augment(images[1:2], uniform[1:2], name), together[1:2])


def test_mirroring_takes_the_images_below_one_half():
    images = torch.cat([ramp(), ramp()])
    out = mirrored(images, torch.tensor([0.49, 0.5]))
    assert torch.equal(out, torch.cat([ramp().flip(3), ramp()]))


@pytest.mark.parametrize(("uniform", "down", "right"), [(0.0, -2, -2), (0.5, 0, 0), (0.999, 2, 2)])
def test_distortions_shift_by_whole_pixels_over_black(uniform, down, right):
    image = torch.zeros(1, 1, 20, 20)
    image[..., 10, 7] = 1.0
    out = distorted(image, torch.tensor([[uniform, uniform, 0.5]]), shift=0.1, brightness=0.3)
    expected = torch.zeros(1, 1, 20, 20)
    expected[..., 10 + down, 7 + right] = 1.0
    assert torch.equal(out, expected)


def test_every_shift_is_equally_likely():
    uniform = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(4000, 1, 10, 10)
    image[..., 5, 5] = 1.0
    where = distorted(image, uniform, shift=0.1, brightness=0.0).mean(dim=(0, 1))[4:7, 4:7]
    torch.testing.assert_close(where, torch.full((3, 3), 1 / 9), atol=0.02, rtol=0)


def test_shifted_borders_are_black_and_brightness_is_added():
    out = distorted(torch.full((1, 1, 10, 10), 0.5), torch.tensor([[0.999, 0.5, 0.999]]), shift=0.1, brightness=0.2)
    assert torch.equal(out[..., 0, :], torch.zeros(1, 1, 10))
    torch.testing.assert_close(out[..., 1:, :], torch.full((1, 1, 9, 10), 0.7), atol=1e-3, rtol=0)


def test_distortions_pass_gradients_to_the_pixels_they_kept():
    images = torch.rand(1, 1, 10, 10, requires_grad=True)
    distorted(images, torch.tensor([[0.999, 0.5, 0.5]]), shift=0.1, brightness=0.2).sum().backward()
    assert images.grad is not None
    assert images.grad[..., :9, :].eq(1).all()
    assert images.grad[..., 9, :].eq(0).all()


@pytest.mark.parametrize("name", ["none", "shift", "faces"])
def test_a_batch_may_be_empty(name):
    assert augment(torch.zeros(0, 3, 8, 8), torch.zeros(0, DRAWS), name).shape == (0, 3, 8, 8)
