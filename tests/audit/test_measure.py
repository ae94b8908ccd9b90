import numpy as np
import torch

from mi_audit.audit.control import RandomPriorSamples
from mi_audit.audit.measure import per_class
from mi_audit.core.run import Run
from tests.toy import ToyPrior


def test_means_are_taken_in_every_class_and_seed():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    rows = per_class(values, torch.tensor([3, 3, 3, 0]), torch.tensor([0, 0, 1, 1]))
    assert [(row.label, row.seed, row.value, row.count) for row in rows] == [
        (0, 1, 1.0, 1),
        (3, 0, 0.5, 2),
        (3, 1, 1.0, 1),
    ]


def test_the_control_does_not_depend_on_which_classes_run_together():
    sampler, prior = RandomPriorSamples(per_class=3), ToyPrior()
    whole = sampler.run(prior, torch.tensor([0, 1, 2]), Run(seed=4))
    alone = sampler.run(prior, torch.tensor([2]), Run(seed=4))
    assert torch.equal(whole.images[6:], alone.images)
    assert whole.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_control_draws_other_images_for_every_class_and_seed():
    sampler, prior = RandomPriorSamples(per_class=2), ToyPrior()
    images = [sampler.run(prior, torch.tensor([0, 1]), Run(seed=seed)).images.flatten(1) for seed in (0, 1)]
    assert len(np.unique(torch.cat(images).numpy(), axis=0)) == 8
