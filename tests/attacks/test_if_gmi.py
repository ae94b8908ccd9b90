from dataclasses import replace

import pytest
import torch
from torch import Size, nn

from mi_audit.attacks.if_gmi import IFGMI, _Layout
from mi_audit.core.errors import ConfigError, Diverged
from mi_audit.core.prior import Painting
from mi_audit.core.run import Run
from mi_audit.core.target import Access, TorchTarget
from tests.toy import ToyPrior, target

SMOKE = IFGMI(**IFGMI.smoke)


def attack(run=None, prior=None, toy=None, classes=(0, 1, 2, 3), **settings):
    plan = replace(SMOKE, **settings)
    return plan.run(toy or target(), prior or ToyPrior(), torch.tensor(classes), run or Run())


def test_every_restart_is_returned_and_as_sure_as_the_target():
    toy = target()
    found = attack(toy=toy, classes=(2, 0), restarts=3)
    assert found.labels.tolist() == [2, 2, 2, 0, 0, 0]
    torch.testing.assert_close(found.confidence, toy.scores(found.images)[range(6), found.labels])


def test_what_is_returned_is_what_the_target_was_shown():
    toy = target()
    for found in (attack(toy=toy, crop=0.5), attack(toy=toy, crop=1.0)):
        torch.testing.assert_close(found.confidence, toy.scores(found.images)[range(8), found.labels])

    class Framed(ToyPrior):
        """Shows black images with a bright frame of one pixel."""

        def show(self, painting):
            images = torch.ones(len(painting.colours), 3, 8, 8)
            images[:, :, 1:-1, 1:-1] = 0
            return images + 0 * super().show(painting)

    assert attack(prior=Framed(), crop=0.6).images.max() < 1e-6
    assert attack(prior=Framed()).images.max() > 0.9


def test_a_row_holds_style_features_and_colours_and_colours_are_constant():
    layout = _Layout(4, Size((2, 3, 3)), Size((3, 5, 5)))
    styles, painting = torch.rand(2, 4), Painting(torch.rand(2, 2, 3, 3), torch.rand(2, 3, 5, 5))
    rows = layout.pack(styles, painting).requires_grad_()
    assert rows.shape == (2, 4 + 18 + 75)
    found, cut = layout.unpack(rows)
    assert torch.equal(found, styles) and torch.equal(cut.features, painting.features)
    assert torch.equal(cut.colours, painting.colours)
    (gradient,) = torch.autograd.grad(found.sum() + cut.features.sum() + cut.colours.sum(), rows)
    assert gradient[0].tolist() == [1] * 22 + [0] * 75
    assert _Layout(4, Size(), Size()).unpack(styles)[1] is None


class Watched(ToyPrior):
    """Notes what is painted from where."""

    def __init__(self):
        self.seen = []

    def paint(self, styles, painting, blocks):
        self.seen.append((blocks, styles.detach().clone(), painting and painting._replace()))
        return super().paint(styles, painting, blocks)


def test_a_stage_starts_with_the_picture_that_the_one_before_ended_with():
    prior = Watched()
    attack(Run(batch_size=1000), prior=prior, steps=(3, 2))
    whole = [entry for entry in prior.seen if entry[0] == range(0, 2)]
    cut = [entry for entry in prior.seen if entry[0] == range(0, 1)]
    later = [entry for entry in prior.seen if entry[0] == range(1, 2)]
    assert (len(whole), len(cut), len(later)) == (3, 1, 3)  # stage 0; the cut; stage 1 and the final images
    torch.testing.assert_close(later[0][2].features[:, :, 0, 0], cut[0][1].sigmoid())
    torch.testing.assert_close(later[0][2].colours, ToyPrior().paint(cut[0][1], None, range(1)).colours)


def test_features_move_and_the_colours_of_earlier_blocks_stay():
    prior = Watched()
    attack(Run(batch_size=1000), prior=prior, steps=(1, 5))
    first, *_, last = [entry for entry in prior.seen if entry[0] == range(1, 2)]
    assert not torch.allclose(first[2].features, last[2].features, atol=1e-3)
    assert torch.equal(first[2].colours, last[2].colours)


def test_every_stage_stays_in_its_ball_features_and_styles_apart():
    prior = Watched()
    attack(Run(batch_size=1000), prior=prior, steps=(1, 30), radii=(9.0, 0.05), lr=0.5)
    first, *_, last = [entry for entry in prior.seen if entry[0] == range(1, 2)]
    moved = (last[2].features - first[2].features).abs().flatten(1).sum(dim=1)
    assert (moved <= 0.0501).all() and moved.max() > 0.04
    prior = Watched()
    attack(Run(batch_size=1000), prior=prior, steps=(30,), radii=(0.05,), lr=0.5)
    first, *_, last = [entry for entry in prior.seen if entry[0] == range(0, 2)]
    moved = (last[1] - first[1]).abs().sum(dim=1)
    assert (moved <= 0.0501).all() and moved.max() > 0.04


def test_stages_beyond_the_blocks_of_the_generator_are_left_out():
    found = attack(steps=(3, 3, 3, 3))
    assert [curve.stage for curve in found.curves] == ["stage 0", "stage 1"]


def test_charges_one_query_per_image():
    toy, run = target(), Run()
    attack(run, toy=toy)
    assert toy.ledger.spent == {Access.WHITE_BOX: 8 * 30, Access.SCORE: 2 * 32 + 8}
    assert run.work == {
        "generator_forward": 32 + 8 * 30 + 8, "generator_backward": 8 * 30,
        "target_forward": 2 * 32 + 8 * 30 + 8, "target_backward": 8 * 30,
    }  # fmt: skip
    assert SMOKE.sample_steps * 4 == 8 * 30


def test_a_broken_target_is_named():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    nn.init.constant_(net[1].weight, torch.nan)
    with pytest.raises(Diverged, match="stage 'stage 0' at step 0 of 25"):
        attack(toy=TorchTarget(net, 4, net[1]))


@pytest.mark.parametrize("changed", [{"crop": 0.6}, {"gentle": (0.3, 0.4)}, {"truncation": 0.1}, {"betas": (0.9, 0.9)}])
def test_every_setting_matters(changed):
    assert not torch.allclose(attack().images, attack(**changed).images, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"restarts": 0},
        {"steps": ()},
        {"steps": (3, 0)},
        {"radii": (1.0,)},
        {"radii": (0.0,) * 9},
        {"lr": 0.0},
        {"crop": 0.0},
        {"truncation": 2.0},
        {"gentle": (0.9, 0.1)},
    ],
)
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match="expected"):
        IFGMI(**wrong)


def test_ships_the_published_settings():
    published = IFGMI()
    assert (published.pool, published.restarts, published.steps) == (5000, 50, (70, 25, 25, 25, 25))
    assert published.radii[:5] == (1000, 2000, 3000, 4000, 5000)
    assert (published.lr, published.betas, published.gentle) == (0.005, (0.1, 0.1), (0.9, 1.0))


def test_without_flips_the_pool_is_scored_once():
    toy, mirrored = target(), target()
    attack(toy=toy, flips=False)
    attack(toy=mirrored)
    assert mirrored.ledger.spent[Access.SCORE] - toy.ledger.spent[Access.SCORE] == 32  # the pool of `smoke`
