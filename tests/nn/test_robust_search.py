from dataclasses import replace

import torch

from mi_audit.core.run import Run
from mi_audit.nn.robust_search import RobustSearch
from mi_audit.nn.views import RandomCrop
from tests.toy import ToyPrior, target

SEARCH = RobustSearch(
    pool=32, truncation=0.5, restarts=4, steps=10, lr=0.1, betas=(0.1, 0.1), crop=1.0,
    gentle=RandomCrop((0.9, 1.0), name="gentle"), harsh=RandomCrop((0.5, 0.9), name="harsh"), views=4, keep=1, mirror=False,
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
    whole = RandomCrop((1.0, 1.0), name="harsh")
    ranked = found(harsh=whole, views=1)
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
