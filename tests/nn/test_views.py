import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from mi_audit.core.errors import ConfigError
from mi_audit.core.random import Streams
from mi_audit.nn.views import RandomCrop, centre_crop, cut


def streams(rows, seed=0):
    return Streams.of(seed, torch.arange(rows), torch.zeros(rows, dtype=torch.long))


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
