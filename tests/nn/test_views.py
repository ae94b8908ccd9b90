import math

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from mi_audit.core.errors import ConfigError
from mi_audit.nn.views import Chain, Jitter, RandomCrop, Rotation, centre_crop, cut, turned
from tests.toy import streams


def noise(rows=3, height=8, width=8):
    return torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def boxes():
    return RandomCrop((0.5, 0.9), (0.8, 1.2), flip=0.5).boxes(streams(20_000), step=3)


def test_the_whole_image_is_returned_unchanged():
    images = noise()
    torch.testing.assert_close(RandomCrop((1.0, 1.0))(images, streams(3), 0), images)
    assert centre_crop(images, 1.0) is images


def test_a_mirrored_whole_image_is_the_mirror_image():
    images = noise()
    torch.testing.assert_close(RandomCrop((1.0, 1.0), flip=1.0)(images, streams(3), 0), images.flip(3))


def test_a_box_on_pixel_borders_is_a_crop_and_a_bilinear_resize():
    images = noise(1, 8, 12)
    box = torch.tensor([[6 / 12, 5 / 8, 6 / 12, 4 / 8]])  # columns 3 to 9, rows 3 to 7
    inner = F.interpolate(images[:, :, 2:8, 2:10], size=(8 * 6 // 4, 12 * 8 // 6), mode="bilinear")  # one pixel wider
    torch.testing.assert_close(cut(images, box), inner[:, :, 2:-2, 2:-2], rtol=1e-4, atol=1e-5)


def test_positions_outside_take_the_edge():
    ramp = torch.arange(4.0).view(1, 1, 1, 4)
    left = cut(ramp, torch.tensor([[0.25, 0.5, 0.5, 1.0]]))  # the left half, twice as wide
    torch.testing.assert_close(left.flatten(), torch.tensor([0.0, 0.25, 0.75, 1.25]))


def test_a_centre_crop_takes_the_middle():
    images = torch.zeros(1, 1, 8, 8)
    images[:, :, 2:6, 2:6] = 1
    inside = centre_crop(images, 0.5)
    assert (inside[:, :, 1:-1, 1:-1] == 1).all() and inside.shape == images.shape


def test_area_is_uniform_and_boxes_lie_inside(boxes):
    x, y, width, height = boxes.T
    for centre, side in ((x, width.abs()), (y, height)):
        assert (centre - side / 2 >= -1e-6).all() and (centre + side / 2 <= 1 + 1e-6).all()
        free = (centre - side / 2) / (1 - side)
        assert stats.kstest(free[side < 0.99].numpy(), "uniform").pvalue > 1e-4
    assert torch.corrcoef(torch.stack([x, y]))[0, 1].abs() < 0.03
    assert boxes[:, 2:].abs().max() < 1  # one that does not fit is drawn again, not shrunk until it does
    area, ratio = width.abs() * height, width.abs() / height
    assert 0.5 - 1e-5 <= area.min() < 0.51 and 0.89 < area.max() <= 0.9 + 1e-5
    assert 0.8 - 1e-5 <= ratio.min() < 0.81 and 1.19 < ratio.max() <= 1.2 + 1e-5
    small = area < 0.8  # such a box fits whatever its ratio, so nothing was drawn again
    assert stats.kstest(area[small].numpy(), stats.uniform(0.5, 0.3).cdf).pvalue > 1e-4
    assert stats.kstest(ratio[small].log().numpy(), _log_uniform(0.8, 1.2).cdf).pvalue > 1e-4
    assert (boxes[:, 2] < 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_square_crops_have_a_uniform_area():
    boxes = RandomCrop((0.9, 1.0)).boxes(streams(20_000), step=0)
    assert torch.equal(boxes[:, 2], boxes[:, 3])
    assert stats.kstest((boxes[:, 2] * boxes[:, 3]).numpy(), stats.uniform(0.9, 0.1).cdf).pvalue > 1e-4


def test_the_ratio_counts_pixels_not_shares():
    boxes = RandomCrop((0.2, 0.3), (1.0, 1.0)).boxes(streams(50), step=0, shape=2.0)  # twice as wide as high
    torch.testing.assert_close(2 * boxes[:, 2] / boxes[:, 3], torch.ones(50))


def test_a_ratio_that_never_fits_gives_the_largest_such_box():
    boxes = RandomCrop((1.0, 1.0), (4.0, 4.0)).boxes(streams(5), step=0)
    torch.testing.assert_close(boxes[:, 2:], torch.tensor([[1.0, 0.25]]).expand(5, 2))


def test_samples_steps_and_names_get_views_of_their_own():
    image = noise(1).expand(4, -1, -1, -1)
    crop = RandomCrop((0.5, 0.9))
    views = torch.cat(
        [crop(image, streams(4), 0), crop(image, streams(4), 1), RandomCrop((0.5, 0.9), name="b")(image, streams(4), 0)]
    )
    assert len(views.flatten(1).unique(dim=0)) == 12


def test_a_view_does_not_depend_on_the_batch():
    images, crop = noise(6), RandomCrop((0.5, 0.9), (0.8, 1.2), flip=0.5)
    steps = torch.arange(6)
    whole = crop(images, streams(6), steps)
    parts = [crop(images[i : i + 1], streams(6)[i : i + 1], i) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_gradients_reach_the_pixels():
    images = noise().requires_grad_()
    (gradient,) = torch.autograd.grad(RandomCrop((0.5, 0.6))(images, streams(3), 0).sum(), images)
    assert gradient.sum() == pytest.approx(images.numel(), rel=1e-4)  # every output pixel is a weighted mean


def test_half_precision_around_it_does_not_move_the_box():
    images, crop = noise(), RandomCrop((0.5, 0.6))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = crop(images, streams(3), 0)
    assert torch.equal(mixed, crop(images, streams(3), 0))


@pytest.mark.parametrize(
    "wrong", [{"area": (0.9, 0.5)}, {"area": (0.5, 1.1)}, {"area": (0.5, 0.9), "ratio": (0.0, 1.0)}]
)
def test_refuses_impossible_crops(wrong):
    with pytest.raises(ConfigError, match="expected 0 < area <= 1"):
        RandomCrop(**wrong)


def _log_uniform(low, high):
    low, high = torch.tensor([low, high]).log().tolist()
    return stats.uniform(low, high - low)


def test_jitter_by_hand():
    jitter, rows = Jitter(brightness=0.2, contrast=0.5, name="j"), streams(1)
    image = torch.tensor([0.4, 0.6]).view(1, 1, 1, 2)
    bright, contrast, _ = (2 * rows.uniform("j", 3, step=3)[0] - 1).tolist()
    expected = [0.5 - 0.1 * (1 + 0.5 * contrast) + 0.2 * bright, 0.5 + 0.1 * (1 + 0.5 * contrast) + 0.2 * bright]
    assert jitter(image, rows, 3).flatten().tolist() == pytest.approx(expected)
    assert Jitter(brightness=9.0)(noise(), streams(3), 0).max() <= 1


def test_jitter_and_rotation_change_a_share_of_the_images():
    images = torch.rand(1, 1, 8, 8).expand(2000, -1, -1, -1) * 0.2 + 0.4
    for view in (Jitter(share=0.3), Rotation(share=0.3)):
        changed = (view(images, streams(2000), 0) - images).abs().amax(dim=(1, 2, 3)) > 1e-6
        assert changed.float().mean() == pytest.approx(0.3, abs=0.04)


def test_rotation_angles_are_uniform():
    ramp = torch.arange(15.0).expand(4000, 1, 15, 15) / 14  # brighter to the right: the slope down the middle tells
    slope = Rotation(10.0, share=1.0)(ramp, streams(4000), 0)[:, 0, 6:9, 7].diff(dim=1).mean(dim=1) * 14
    angles = slope.clamp(-1, 1).asin().rad2deg()
    assert stats.kstest(angles.numpy(), stats.uniform(-10, 20).cdf).pvalue > 1e-4


def test_a_turn_moves_a_point_by_its_angle():
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 26] = 1  # ten pixels right of the centre
    moved = turned(image, torch.tensor([math.radians(30.0)]))[0, 0]
    place = torch.arange(33.0) - 16
    down, right = (moved.sum(dim=1) * place).sum() / moved.sum(), (moved.sum(dim=0) * place).sum() / moved.sum()
    assert (right.item(), down.item()) == pytest.approx((8.66, 5.0), abs=0.1)
    assert moved.sum() == pytest.approx(1.0, abs=1e-4)


def test_a_turn_by_nothing_is_the_image_and_corners_come_in_black():
    images = noise(2)
    torch.testing.assert_close(turned(images, torch.zeros(2)), images)
    white = turned(torch.ones(1, 1, 16, 16), torch.tensor([0.3]))[0, 0]
    assert white[0, 0] < 0.5 and white[8, 8] == pytest.approx(1.0)


def test_the_gradient_of_a_turn_is_right():
    image = torch.rand(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    angle = torch.tensor([0.2], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda pixels: turned(pixels, angle), image)


def test_a_chain_applies_its_views_in_order():
    images, rows = noise(), streams(3)
    first, second = RandomCrop((0.5, 0.6)), Rotation(20.0, share=1.0)
    chained = Chain((first, second))(images, rows, 2)
    assert torch.equal(chained, second(first(images, rows, 2), rows, 2))
    assert not torch.allclose(chained, first(second(images, rows, 2), rows, 2))
