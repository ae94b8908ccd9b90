from itertools import pairwise

import torch

from mi_audit.audit.trajectory import Watched
from tests import toy


def ask(watched, values, side=8, grad=True):
    for value in values:
        watched.logits(torch.full((2, 3, side, side), value / 255).requires_grad_(grad))


def test_keeps_batches_evenly_and_in_order():
    watched = Watched(toy.target(), 4, 8)
    ask(watched, range(100))
    kept = [int(batch[0, 0, 0, 0]) for batch in watched.pixels]
    assert len(kept) == 4 and kept == sorted(kept)
    assert kept[0] == 0 and kept[-1] > 80  # of both ends
    assert max(b - a for a, b in pairwise(kept)) <= 48
    assert len(watched._kept) <= 8
    assert watched.pixels[0].dtype == torch.uint8 and watched.pixels[0].shape == (2, 3, 8, 8)


def test_keeps_all_when_there_are_few():
    watched = Watched(toy.target(), 4, 8)
    ask(watched, (3, 9))
    assert [int(batch[0, 0, 0, 0]) for batch in watched.pixels] == [3, 9]
    assert Watched(toy.target(), 4, 8).pixels == []


def test_what_is_asked_without_a_gradient_is_not_kept():
    watched = Watched(toy.target(), 4, 8)
    ask(watched, (1, 2), grad=False)
    watched.scores(torch.zeros(1, 3, 8, 8)), watched.labels(torch.zeros(1, 3, 8, 8))
    assert watched.pixels == []


def test_every_way_to_ask_with_a_gradient_is_seen():
    watched, image = Watched(toy.target(), 9, 8), torch.zeros(1, 3, 8, 8).requires_grad_()
    watched.logits(image), watched.features(image), watched.logits_and_features(image)
    watched.logits_and_normalisations(image)
    assert len(watched.pixels) == 4


def test_answers_are_those_of_the_target_and_its_ledger_counts_them():
    plain = toy.target()
    watched, image = Watched(plain, 4, 8), torch.rand(2, 3, 8, 8).requires_grad_()
    assert torch.equal(watched.logits(image), plain._model(image))
    assert watched.ledger is plain.ledger and plain.ledger.spent.total() == 2
    assert watched.num_classes == 4


def test_other_sizes_are_brought_to_one():
    watched = Watched(toy.target(), 4, 4)
    ask(watched, (51,))
    assert watched.pixels[0].shape == (2, 3, 4, 4) and (watched.pixels[0] == 51).all()
