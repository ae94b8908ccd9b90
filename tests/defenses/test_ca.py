import math

import pytest
import torch
from torch.nn import functional as F

from mi_audit.core.defense import Moment, Step
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.ca import CA, confidence_loss
from mi_audit.train.recipe import Recipe
from tests.toy import classifier, dataset

LABEL = torch.tensor([0])


def moment(phase):
    return Moment(phase, 0, 5, torch.Generator())


def two_logits(p, dtype=torch.float64):
    return torch.tensor([[math.log(p / (1 - p)), 0.0]], dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(("power", "peak"), [(2.0, 0.6065), (3.0, 0.7165), (4.0, 0.7788), (8.0, 0.8825)])
def test_the_loss_is_smallest_at_the_confidence_that_the_power_sets(power, peak):
    slopes = []
    for p in (peak - 0.01, math.exp(-1 / power), peak + 0.01):
        logits = two_logits(p)
        confidence_loss(logits, LABEL, power, 0.25).backward()
        slopes.append(float(logits.grad[0, 0]))
    assert slopes[0] < 0 < slopes[2] and slopes[1] == pytest.approx(0, abs=1e-7)


def test_the_value_and_the_slope_by_hand():
    logits = two_logits(0.5)
    loss = confidence_loss(logits, LABEL, 3.0, 2.0)
    loss.backward()
    assert float(loss) == pytest.approx(2 / 8 * math.log(0.5), rel=1e-6)  # a p^b log p
    assert float(logits.grad[0, 0]) == pytest.approx(2 / 8 * 0.5 * (1 - 3 * math.log(2)), rel=1e-5)


def test_is_a_mean_over_the_batch_in_single_precision():
    logits = torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    rows = [confidence_loss(logits[i : i + 1], labels[i : i + 1], 8.0, 0.25) for i in range(6)]
    whole = confidence_loss(logits, labels, 8.0, 0.25)
    assert float(whole) == pytest.approx(float(torch.stack(rows).mean()), rel=1e-5)
    assert confidence_loss(logits.half(), labels, 8.0, 0.25).dtype == torch.float32


@pytest.mark.parametrize("gap", [-6e4, -1e3, 1e3, 6e4])
def test_nothing_breaks_and_nothing_moves_where_the_probability_is_0_or_1(gap):
    logits = torch.tensor([[gap, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = confidence_loss(logits, LABEL, 8.0, 0.25)
    loss.backward()
    assert float(loss) == 0 and logits.grad.tolist() == [[0, 0]]


def test_acts_only_in_its_own_phase_after_the_main_one():
    defense, logits, labels = CA(), torch.randn(3, 4), torch.tensor([0, 1, 2])
    (phase,) = defense.phases()
    assert (phase.name, phase.when, phase.epochs, phase.keep) == ("confidence", "after", 5, "last")
    assert defense.objective(logits, labels, moment("main")) is None
    expected = confidence_loss(logits, labels, 8.0, 0.25)
    assert torch.equal(defense.objective(logits, labels, moment("confidence")), expected)


def test_the_phase_fits_the_recipe_of_the_trainer():
    (phase,) = CA(lr=3e-4, epochs=2).phases()
    recipe = Recipe(**phase.recipe, epochs=phase.epochs)
    assert (recipe.lr, recipe.optimiser, recipe.schedule, recipe.epochs) == (3e-4, "sgd", "milestones", 2)


def test_logs_the_confidence_without_adding_to_the_loss():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # 3/4 and 1/2 for class 0
    labels = torch.tensor([0, 0])
    images, base = torch.zeros(2, 3, 8, 8), F.cross_entropy(logits, labels)
    term = CA().term(Step(classifier(), images, labels, logits, {}, base, moment("confidence"), None))
    assert float(term.value) == 0 and float(term.notes["confidence"]) == pytest.approx(5 / 8)
    assert CA().term(Step(classifier(), images, labels, logits, {}, base, moment("main"), None)) is None


def test_brings_a_sure_model_to_its_confidence():
    data, net = dataset(), classifier()
    with torch.no_grad():
        net[1].weight.mul_(1.5)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)

    def confidence():
        return float(net(data.images()).softmax(1).gather(1, data.labels[:, None]).mean())

    first = confidence()
    for _ in range(300):
        optimiser.zero_grad()
        CA(power=4.0, scale=1.0).objective(net(data.images()), data.labels, moment("confidence")).backward()
        optimiser.step()
    assert first > 0.95 and confidence() == pytest.approx(0.7788, abs=0.03)


@pytest.mark.parametrize("settings", [{"power": 0.0}, {"scale": -1.0}, {"lr": 0.0}, {"epochs": 0}])
def test_refuses_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="expected"):
        CA(**settings)


def test_says_when_the_model_stayed_as_sure_as_it_was():
    """exp(-1 / 8) is 0.8825; half the way down from 1 is 0.941."""
    assert CA().shortfall({"confidence": 0.94}) == ""
    assert "0.998 on average, 0.88 is aimed at" in CA().shortfall({"confidence": 0.998})
    assert "raise ca.lr, which is 2e-05" in CA().shortfall({"confidence": 0.95})
