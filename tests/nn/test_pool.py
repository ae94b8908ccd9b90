import torch

from mi_audit.core.prior import Prior
from mi_audit.core.run import Run
from mi_audit.core.target import Access
from mi_audit.nn.pool import Pool
from tests.toy import ToyPrior, ToySpace, target

CLASSES = torch.arange(4)


class PlainPrior(Prior):
    z = ToySpace()


def drawn(prior=None, run=None, classes=CLASSES, count=3, **settings):
    return Pool(**{"size": 16} | settings).draw(target(), prior or ToyPrior(), classes, count, run or Run())


def test_the_best_of_a_class_are_its_surest_in_order():
    found = drawn(mirror=False, count=16)
    scores = target().scores(ToySpace().decode(found.pool))
    for label, best in enumerate(found.best.view(4, 16, 4)):
        torch.testing.assert_close(best, found.pool[scores[:, label].argsort(descending=True, stable=True)])


def test_mirror_images_count_as_much_as_images():
    # north-west and north-east mirror each other
    west, east, _, _ = drawn().best.view(4, 3, 4)
    assert torch.equal(west, east)
    west, east, _, _ = drawn(mirror=False).best.view(4, 3, 4)
    assert not torch.equal(west, east)


def test_only_styles_are_truncated_towards_their_average():
    prior = ToyPrior()
    prior.w = ToySpace()
    prior.w.mean = torch.full((4,), 2.0)
    whole, half = (drawn(prior, truncation=share).pool for share in (1.0, 0.25))
    torch.testing.assert_close(half, 2 + 0.25 * (whole - 2))
    assert torch.equal(drawn(PlainPrior(), truncation=0.25).pool, drawn(PlainPrior()).pool)


def test_the_pool_depends_on_the_seed_alone():
    assert torch.equal(drawn().pool, drawn(classes=CLASSES[:1], run=Run(batch_size=3)).pool)
    assert not torch.equal(drawn().pool, drawn(run=Run(seed=1)).pool)


def test_the_pool_is_drawn_in_parts_that_fit_the_memory():
    sizes = []

    class Narrow(ToySpace):
        def draw(self, noise):
            if len(noise) > 5:
                raise torch.OutOfMemoryError
            sizes.append(len(noise))
            return super().draw(noise)

    class NarrowPrior(ToyPrior):
        z = w = Narrow()

    assert torch.equal(drawn(NarrowPrior(), run=Run(batch_size=8)).pool, drawn().pool)
    assert sizes == [4, 4, 4, 4]


def test_work_queries_and_progress_are_counted():
    toy, steps = target(), []
    run = Run(batch_size=10, on_step=lambda *step: steps.append(step))
    Pool(size=16).draw(toy, ToyPrior(), CLASSES, 2, run)
    assert toy.ledger.spent == {Access.SCORE: 32}
    assert run.work == {"generator_forward": 16, "target_forward": 32}
    assert steps == [("pool", 10, 16), ("pool", 16, 16)]
