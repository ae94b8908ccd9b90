from dataclasses import replace

import torch

from mi_audit.core.run import Run
from mi_audit.nn.robust_search import RobustSearch
from tests.toy import ToyPrior, target

SEARCH = RobustSearch(
    pool=32, truncation=0.5, restarts=4, steps=10, lr=0.1, betas=(0.1, 0.1), crop=1.0,
    gentle=(0.9, 1.0), views=4, harsh=(0.5, 0.9), stretch=(1.0, 1.0), keep=1, flips=False,
)  # fmt: skip


def found(**changed):
    return replace(SEARCH, **changed).search(target(), ToyPrior(), torch.tensor([2, 0]), Run())


def test_all_latents_are_returned_by_class_the_most_robust_first():
    ranked = found()
    assert ranked.labels.tolist() == [2] * 4 + [0] * 4 and ranked.curve.stage == "optimise"
    assert (ranked.robustness.view(2, 4).diff(dim=1) <= 0).all()
    scores = target().scores(ToyPrior().w.decode(ranked.latents))
    assert torch.equal(scores.argmax(dim=1), ranked.labels)


def test_latents_and_robustness_stay_together():
    # The order of the rows is the only thing that ranking changes: with one view per latent the score can be redone.
    ranked = found(harsh=(1.0, 1.0), views=1)
    scores = target().scores(ToyPrior().w.decode(ranked.latents))
    torch.testing.assert_close(ranked.robustness, scores[torch.arange(8), ranked.labels])


def test_the_first_of_every_class_are_shown():
    ranked, run = found(), Run(batch_size=3)
    shown = SEARCH.shown(ToyPrior(), ranked, 2, run)
    rows = [0, 1, 4, 5]
    assert shown.labels.tolist() == [2, 2, 0, 0]
    torch.testing.assert_close(shown.images, ToyPrior().w.decode(ranked.latents[rows]))
    torch.testing.assert_close(shown.confidence, ranked.robustness[rows])
    assert run.work == {"generator_forward": 4} and shown.curves == (ranked.curve,)


def test_what_is_shown_is_the_middle_when_the_target_saw_no_more():
    ranked = found(crop=0.5)
    shown = replace(SEARCH, crop=0.5).shown(ToyPrior(), ranked, 1, Run())
    assert not torch.allclose(shown.images, ToyPrior().w.decode(ranked.latents[[0, 4]]), atol=0.01)


def searched(run, **changed):
    ranked = replace(SEARCH, **changed).search(target(), ToyPrior(), torch.tensor([2, 0]), run)
    return ranked, run.work


def test_halving_shows_fewer_views_and_gives_those_it_keeps_the_same_score():
    (whole, full), (halved, less) = searched(Run(), views=10), searched(Run(halving=True), views=10)
    # of 4 candidates all see 1 view, 2 see 2 more and 1 sees the other 7: 15 instead of 40, in 7 images instead of 4
    assert full["target_forward"] - less["target_forward"] == 2 * (40 - 15)
    assert less["generator_forward"] - full["generator_forward"] == 2 * (7 - 4)
    for row in (0, 4):
        (same,) = (whole.latents == halved.latents[row]).all(dim=1).nonzero()
        torch.testing.assert_close(halved.robustness[row], whole.robustness[same[0]])


def test_halving_changes_nothing_when_all_are_kept():
    (whole, full), (halved, less) = searched(Run(), keep=4), searched(Run(halving=True), keep=4)
    assert full == less and torch.equal(whole.latents, halved.latents)
    assert torch.equal(whole.robustness, halved.robustness)


def test_halving_does_not_depend_on_the_batch_size():
    seen = []
    small = Run(batch_size=3, halving=True, on_step=lambda stage, *count: seen.append((stage, *count)))
    (whole, _), (cut, _) = searched(Run(halving=True), views=10), searched(small, views=10)
    torch.testing.assert_close(whole.latents, cut.latents)
    assert [event for event in seen if event[0] == "select"][-1] == ("select", 30, 30)
