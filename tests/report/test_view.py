from dataclasses import replace

import pytest

from mi_audit.report import view
from mi_audit.report.html import html
from tests.report import sample


def test_a_row_shows_both_ends_of_its_own_change():
    """Exposure changes are pooled by identity, measurements over seeds: one row must not mix them."""
    ppa = sample.trusted().attacks[1]  # its own measurement says 0.2
    after = sample.audit(attacks=(ppa,))
    pooled = sample.change("ppa", "exposure", (0.4, 0.6), 0.1, "no significant change")
    (block,) = view.blocks(sample.comparison(after=after, changes=(pooled,)))
    row = next(row for row in block.rows if row.name == "exposure")
    assert (row.before.value, row.after.value) == (0.4, 0.6)
    assert row.difference.value == pytest.approx(row.after.value - row.before.value)


def test_without_a_change_the_measurement_is_shown():
    ppa = sample.trusted().attacks[1]
    (block,) = view.blocks(sample.comparison(after=sample.audit(attacks=(ppa,)), changes=()))
    row = next(row for row in block.rows if row.name == "exposure")
    assert row.after.value == 0.2 and row.difference is None


def test_the_fact_about_classes_says_that_the_run_stopped_early():
    planned = replace(sample.audit(), planned=(0, 1, 2, 3, 4, 5, 6))
    assert view.key_facts(planned)[-1].note.endswith("; 7 planned, the bounds had decided")
    assert "planned" not in view.key_facts(sample.audit())[-1].note


def test_a_reason_is_said_once_for_all_that_share_it():
    parts = {m.name: m for m in sample.attack("gmi", 0.5).measurements}
    shared = [replace(parts["attack_acc1"], name=name, reason="sets") for name in ("recall_k3", "precision_k3")]
    alone = replace(parts["attack_acc1"], name="fid_evaluator", reason="biased")
    report = sample.audit(attacks=(sample.attack("gmi", 0.5, measurements=(*shared, alone)),))
    (block,) = view.blocks(report)
    assert block.notes[-1] == "Precision of the set, Recall of the set: sets."
    assert sum("biased." in note for note in block.notes) == 1


def test_the_control_of_the_facts_is_the_one_that_ran():
    untrained = replace(sample.control(), name="control:untrained:ppa")
    report = sample.audit(attacks=(sample.attack("ppa", 0.3), untrained))
    fact = view.key_facts(report)[1]
    assert (fact.title, fact.note) == ("Control", "[7.0, 17.0] the same attack on untrained weights")
    assert view.floor_words(report) == "the same attack on untrained weights"
    usual = view.key_facts(sample.audit())[1]
    assert (usual.title, usual.note) == ("Without the model", "[7.0, 17.0] random pictures of the prior")
    assert view.floor_words(sample.audit()) == "random pictures of the prior"
    page = html(report, None)
    assert "control: the same attack on untrained weights" in page and "andom pictures of the prior" not in page
    alone = sample.audit(attacks=(sample.attack("ppa", 0.3),))
    assert view.key_facts(alone)[1].note == "no control was run" and view.floor_words(alone) == "none was run"
