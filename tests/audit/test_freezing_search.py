import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.audit.freezing_search import Trial, search, spec_of, stage_ends
from mi_audit.core.errors import ConfigError
from mi_audit.nn.freezing import freeze
from tests.nn.test_anatomy import plain_cnn

STAGES = ("a", "a", "b", "b", "c", "c", "d", "d")  # of a ResNet-18


class Trainer:
    """Accuracies by units frozen, and what was asked for."""

    def __init__(self, accuracies, total=8):
        self.by_spec = {spec_of(units, total): value for units, value in enumerate(accuracies)}
        self.asked = []

    def __call__(self, spec):
        self.asked.append(spec)
        return self.by_spec[spec]


FALLING = (0.90, 0.90, 0.89, 0.89, 0.885, 0.88, 0.86, 0.70, 0.50)


def test_deepest_cut_within_two_points():
    trainer = Trainer(FALLING)
    found = search(STAGES, 0.02, trainer, start=4)
    assert (found.deepest, found.units, found.spec, found.start) == (5, 5, "63%", 4)
    assert found.monotone and found.trials == {}
    assert found.accuracies[0] == 0.90 and found.accuracies[5] == 0.88
    assert len(trainer.asked) == len(set(trainer.asked))  # nothing is trained twice
    assert "no attack was measured" in found.reason


@given(st.integers(0, 7), st.integers(0, 8), st.integers(2, 12))
def test_finds_the_deepest_cut_from_anywhere_when_accuracy_falls(limit, start, total):
    accuracies = [0.9 if units <= limit else 0.5 for units in range(total + 1)]
    trainer = Trainer(accuracies, total)
    found = search(["s"] * total, 0.02, trainer, start=min(start, total))
    assert found.deepest == min(limit, total - 1) and found.monotone
    assert "100%" not in trainer.asked  # the last unit always learns


def test_begins_where_the_profile_says():
    for start, first in ((2, "25%"), (6, "75%"), (0, "13%"), (8, "88%"), (None, "50%")):
        trainer = Trainer(FALLING)
        search(STAGES, 0.02, trainer, start=start)
        assert trainer.asked[:2] == ["none", first]


def test_at_least_three_cuts_are_tried():
    for limit in range(9):
        trainer = Trainer([0.9 if units <= limit else 0.5 for units in range(9)])
        search(STAGES, 0.02, trainer, start=limit)
        assert len([spec for spec in trainer.asked if spec != "none"]) >= 3


def test_a_deeper_cut_that_does_well_calls_for_the_grid():
    dented = (0.90, 0.90, 0.90, 0.90, 0.50, 0.50, 0.89, 0.885, 0.5)
    trainer = Trainer(dented)
    found = search(STAGES, 0.02, trainer, start=4)
    assert not found.monotone and found.deepest == 7
    assert {2, 4, 6} <= set(found.accuracies)  # the ends of the stages


def attacked(by_units, accuracies=FALLING):
    asked = []

    def measured(spec):
        units = next(k for k in range(9) if spec_of(k, 8) == spec)
        asked.append(units)
        return Trial(accuracy=accuracies[units], attack=by_units.get(units, 0.9))

    return measured, asked


def test_the_measured_attack_chooses_among_three_cuts():
    measured, asked = attacked({0: 0.8, 4: 0.10, 5: 0.30, 6: 0.05})
    found = search(STAGES, 0.02, Trainer(FALLING), start=4, measured=measured)
    assert asked == [0, 4, 5, 6]  # the twin, a stage before, the deepest, a stage behind
    # 6 leaks least but loses 4 points in full training; 4 leaks less than 5
    assert (found.units, found.spec, found.deepest) == (4, "50%", 5)
    assert found.trials[6] == Trial(accuracy=0.86, attack=0.05)
    assert "10.0%" in found.reason and "30.0% at 5" in found.reason


def test_a_stage_behind_is_taken_when_full_training_keeps_its_accuracy():
    recovered = (*FALLING[:6], 0.89, *FALLING[7:])
    measured, _ = attacked({0: 0.8, 4: 0.40, 5: 0.30, 6: 0.05}, recovered)
    assert search(STAGES, 0.02, Trainer(FALLING), start=4, measured=measured).units == 6


def test_of_equal_attacks_the_shallower_cut_is_taken():
    measured, _ = attacked({4: 0.2, 5: 0.2, 6: 0.2})
    assert search(STAGES, 0.02, Trainer(FALLING), start=4, measured=measured).units == 4


def test_no_cut_that_keeps_the_accuracy_means_none():
    measured, _ = attacked({}, (0.9, *[0.5] * 8))
    found = search(STAGES, 0.02, Trainer(FALLING), start=4, measured=measured)
    assert found.spec == "none" and "no cut" in found.reason


def test_the_record_is_plain():
    measured, _ = attacked({0: 0.8, 4: 0.10, 5: 0.30, 6: 0.05})
    record = search(STAGES, 0.02, Trainer(FALLING), start=4, measured=measured).as_mapping()
    again = json.loads(json.dumps(record))
    assert again == record
    assert again["trials"]["4"] == {"accuracy": 0.885, "attack": 0.10} and again["accuracies"]["5"] == 0.88


@given(st.integers(1, 200).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_a_share_names_exactly_so_many_units(pair):
    units, total = pair
    spec = spec_of(units, total)
    assert (spec == "none") == (units == 0)
    if units:  # as nn.freezing counts
        assert int(round(float(spec[:-1]) * total / 100, 6)) == units


def test_the_freezer_understands_it():
    for units in range(1, 5):
        net = plain_cnn(depth=5)
        facts = freeze(net, spec_of(units, 5), __import__("torch").zeros(1, 3, 8, 8))
        assert facts.units_frozen == units


def test_stage_ends():
    assert stage_ends(STAGES) == (2, 4, 6, 8)
    assert stage_ends(["x"] * 3) == (1, 2, 3)


@pytest.mark.parametrize(
    ("stages", "delta", "start", "message"),
    [(STAGES, 2.0, 4, "0 to 100 points"), ("a", 0.02, None, "two units"), (STAGES, 0.02, 9, "0 to 8 units")],
)
def test_refuses(stages, delta, start, message):
    with pytest.raises(ConfigError, match=message):
        search(stages, delta, Trainer(FALLING), start)


def test_units_that_another_defense_changes_are_never_frozen():
    asked = []

    def val_accuracy(spec):
        asked.append(spec)
        return 1.0

    found = search(("a", "a", "b", "b", "c", "c"), 0.02, val_accuracy, start=5, limit=4)
    assert found.units == 4 and "84%" not in asked  # five of six
    with pytest.raises(ConfigError, match="expected two units or more to search a cut in, got 1 of 6; give --freeze"):
        search(("a",) * 6, 0.02, val_accuracy, limit=0)
