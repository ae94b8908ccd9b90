from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.audit.control import belongs, chosen, derangement, measure_permuted, permuted, with_leakage
from mi_audit.core.errors import ConfigError
from mi_audit.core.metric import Verification
from mi_audit.core.quantity import ClassValue, Measurement
from mi_audit.core.report import AttackResult
from tests.metrics.evidence import evidence


@given(st.sets(st.integers(0, 50), min_size=2), st.text(max_size=3))
def test_everybody_is_sent_to_somebody_else_and_nobody_twice(classes, text):
    sent = derangement(sorted(classes), text)
    assert set(sent) == set(sent.values()) == classes
    assert all(label != image for label, image in sent.items())


def test_the_permutation_follows_from_the_text_and_one_class_has_none():
    classes = list(range(20))
    assert derangement(classes, "a") == derangement(classes, "a") != derangement(classes, "b")
    assert derangement([3], "a") is None


def nobody(pixels, labels):
    del pixels
    return labels == 2


def test_reconstructions_are_judged_against_the_other_class_and_keep_their_own_label():
    found = evidence([0, 1, 2], logits=torch.eye(8)[[1, 1, 1]], confidence=torch.ones(3))
    seen = replace(found, verify=Verification("v", torch.tensor([0, 1, 2]), nobody, nobody))
    by_name = {one.name: one for one in measure_permuted((), seen, {0: 1, 1: 2, 2: 0})}
    assert [(row.label, row.value) for row in by_name["attack_acc1"].per_class] == [(0, 1.0), (1, 0.0), (2, 0.0)]
    assert [(row.label, row.value) for row in by_name["exposure"].per_class] == [(0, 0.0), (1, 1.0), (2, 0.0)]


def test_a_class_may_be_judged_against_one_that_was_not_attacked():
    found = evidence([0, 1], logits=torch.eye(8)[[5, 0]], confidence=torch.ones(2))
    accuracy = measure_permuted(("attack-accuracy",), found, {0: 5, 1: 0})[0]
    assert [(row.label, row.value) for row in accuracy.per_class] == [(0, 1.0), (1, 1.0)]


def test_only_the_metrics_that_were_asked_for_are_permuted():
    names = [one.name for one in measure_permuted(("attack-accuracy", "fid"), evidence([0, 1]), {0: 1, 1: 0})]
    assert names == ["attack_acc1", "attack_acc5"]


def result(name: str, *values: float, role: str = "attack", prior: str = "gan", metric: str = "exposure"):
    rows = tuple(ClassValue(label=label, seed=0, value=float(value), count=1) for label, value in enumerate(values))
    one = Measurement(
        name=metric, protocol=f"{metric}/identity/sel1/target-conf@v#audit-v1", value=sum(values) / len(values),
        unit="share", count=len(values), counted="identities", reason="-", leak_grows=True, per_class=rows,
    )  # fmt: skip
    return AttackResult(
        name=name, role=role, access="white-box", prior=prior, paper="", settings={}, seeds=(0,), measurements=(one,),
        queries={}, work={},
    )  # fmt: skip


def test_leakage_is_the_paired_difference_to_every_control_of_the_attack():
    results = [
        result("gmi", 1, 1, 0, 1),
        result("ppa", 0, 0, 0, 0),
        result("control:random-prior", 0, 1, 0, 0, role="control"),
        result("control:random-prior:other", 1, 1, 1, 1, role="control", prior="other"),
        result("control:permuted-labels:gmi", 0, 0, 1, 0, role="control"),
        result("control:permuted-labels:ppa", 1, 1, 1, 1, role="control"),
    ]
    gmi, ppa, *controls = with_leakage(results)
    assert [(one.name, one.value) for one in gmi.over_control] == [("leakage", 0.5), ("leakage", 0.5)]
    assert [one.protocol.partition("-over-")[2] for one in gmi.over_control] == [
        "control:random-prior", "control:permuted-labels:gmi",
    ]  # fmt: skip
    assert [one.value for one in ppa.over_control] == [-0.25, -1.0]
    assert gmi.over_control[0].protocol.startswith("leakage/identity/sel1/target-conf@v#audit-v1-over-")
    assert gmi.over_control[0].count == 4 and gmi.over_control[0].interval.low <= 0.5
    assert all(one.over_control == () for one in controls)


def test_an_untrained_control_belongs_to_its_attack_whatever_its_prior():
    control = result("control:untrained:ppa", 0, 0, role="control", prior="fitted on the target")
    assert belongs(control, result("ppa", 0, 0)) and not belongs(control, result("gmi", 0, 0))


def test_the_permuted_control_asks_nobody_anything():
    facts = {
        "name": "gmi", "role": "attack", "access": "white-box", "prior": "gan", "paper": "", "settings": {},
        "seeds": (0,),
    }  # fmt: skip
    found = permuted(facts, ())
    assert (found.name, found.role, found.queries, found.prior) == ("control:permuted-labels:gmi", "control", {}, "gan")


def test_a_counterfactual_control_belongs_to_its_attack_alone():
    control = result("control:counterfactual:ppa", 0, 1, role="control")
    assert belongs(control, result("ppa", 0, 0)) and not belongs(control, result("gmi", 0, 0))
    gmi, ppa, _ = with_leakage([result("gmi", 1, 1), result("ppa", 1, 1), control])
    assert gmi.over_control == () and [one.value for one in ppa.over_control] == [0.5]


def test_unknown_controls_are_refused_and_repeated_ones_run_once():
    assert chosen(("random", "counterfactual", "random")) == ("random", "counterfactual")
    with pytest.raises(ConfigError, match=r"random, permuted, untrained, counterfactual, got 'rnadom'"):
        chosen(("random", "rnadom"))
