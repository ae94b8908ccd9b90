import io
from dataclasses import replace

import pytest
from rich.console import Console

from mi_audit.report import defended
from mi_audit.report.html import html
from mi_audit.report.markdown import markdown
from mi_audit.report.model_card import model_card
from mi_audit.report.terminal import show
from tests.report.sample import audit, comparison, model

NAMES = [f"net.block{n}.weight" for n in range(40)]
TOLD = ["trap-mid: It has a *backdoor* for every class.", "ca: It <b>lies</b>."]
MADE = {
    "method": "tldmi+trap-mid",
    "kind": "information, deception",
    "settings": {"trap-mid": {"opacity": 0.02, "rank": None}, "tldmi": {"freeze": "80%", "head_epochs": 0}},
    "resolved": {"tldmi": {"frozen": NAMES, "share_frozen": 0.41, "parameters_total": 1234567, "summary": "3 of 4"}},
    "adaptive_attack": "tldmi: average over views; with care; trap-mid: search the trigger",
    "doubts": ["tldmi with trap-mid has no published measurement"],
    "phases": {
        "confidence": {"place": 2, "kept_epoch": 5, "loss": {"base": 0.25}, "epsilon": 8.0, "summary": "epsilon 8"},
        "main": {"place": 1, "kept_epoch": 3, "loss": {"base": 0.579007, "trap-mid.trap_loss": 2.0}},
    },
    "recipe": {"epochs": 12, "lr": 0.05},
    "init": {"sha256": "c3" * 32, "recipe": {"epochs": 8}},
    "seed": 0,
    "test_accuracy": 0.9,
    "cautions": TOLD,
}


def pair(about=MADE, **more):
    return comparison(defense=about, after=audit(targets=(model(0.9, defense=about),)), **more)


def test_a_combination_is_shown_part_by_part_in_its_order():
    found = defended.defended(pair())
    tldmi, trap = found.parts
    assert (tldmi.name, trap.name) == ("tldmi", "trap-mid")
    assert tldmi.settings == {"freeze": "80%", "head_epochs": "0"}
    assert trap.settings == {"opacity": "0.02", "rank": "not set"}
    assert (tldmi.adaptive, trap.adaptive) == ("average over views; with care", "search the trigger")
    assert tldmi.decided == "3 of 4" and tldmi.details["frozen"] == NAMES and not trap.details
    assert found.facts == {
        "method": "tldmi+trap-mid", "class": "information, deception", "accuracy": "90.0% on test images", "seed": "0",
    }  # fmt: skip
    assert list(found.folded) == ["recipe", "public start"]


def test_phases_come_in_the_order_of_the_training():
    main, after = defended.defended(pair()).stages
    assert (main.name, main.epoch, main.loss) == ("main", "3", {"base": "0.579", "trap-mid.trap_loss": "2"})
    assert (after.name, after.summary, after.details) == ("confidence", "epsilon 8", {"epsilon": 8.0})


def test_the_guarantee_of_the_released_model_stands_in_one_place():
    spent = {"epsilon": 7.99, "steps": 15, "summary": "epsilon 7.99 at delta 0.03 for one image (15 steps)"}
    so_far = {"place": 1, "kept_epoch": 3, "epsilon_so_far": 4.5, "summary": "so far epsilon 4.5 (6 of 15 steps)"}
    about = MADE | {"guarantee": spent, "phases": MADE["phases"] | {"main": so_far}}
    found = defended.defended(pair(about))
    assert found.facts["privacy guarantee"] == spent["summary"] and found.folded["privacy guarantee"] == spent
    assert "epsilon 7.99 at delta" in html(pair(about), None) and "So far epsilon 4.5" in html(pair(about), None)
    assert "privacy guarantee" not in defended.defended(pair()).facts


def test_the_settings_of_a_single_defense_may_stand_alone():
    about = {"method": "tldmi", "settings": {"freeze": "80%"}, "resolved": {"units": 4}, "adaptive_attack": "views"}
    found = defended.defended(comparison(defense=about))
    assert [(part.name, part.settings, part.details) for part in found.parts] == [
        ("tldmi", {"freeze": "80%"}, {"units": 4})
    ]
    assert found.facts["adaptive attack"] == "views" and not found.stages


def test_an_audit_shows_the_defense_that_the_model_declares():
    assert defended.defended(audit()) is None
    assert defended.defended(audit(targets=(model(0.9, defense={"method": "none"}),))) is None
    found = defended.defended(audit(targets=(model(0.9, defense=MADE),)))
    assert found.title.endswith("as the model declares it") and len(found.parts) == 2


@pytest.mark.parametrize(
    "about",
    [
        {
            "method": 3,
            "settings": ["x"],
            "resolved": "y",
            "phases": {"main": 4},
            "cautions": "no list",
            "doubts": 1,
            "guarantee": 3,
        },
        {"settings": {}, "phases": [], "cautions": {"a": 1}},
        {"method": "", "settings": {"a": {"b": {"c": [1]}}}, "kind": None},
    ],
)
def test_a_manifest_that_somebody_else_wrote_breaks_nothing(about):
    result = pair(about)
    assert defended.cautions(result) == ()
    assert '<section id="defense">' in html(result, None) and markdown(result) and model_card(result)


def test_the_page_folds_long_lists_and_writes_numbers_to_be_read():
    page = html(pair(), None)
    assert "<details><summary>40 in all</summary>net.block0.weight" in page
    assert all(text in page for text in ("41.0%", "1,234,567", "not set", "c3c3c3c3c3c3c3c3<", "search the trigger"))
    assert "{&#39;" not in page and "c3" * 9 not in page


@pytest.mark.parametrize("result", [pair(), audit(targets=(model(0.9, defense=MADE),))], ids=["pair", "audit"])
def test_what_must_be_told_is_in_every_report_for_people(result):
    page = html(result, None)
    assert "must be told" in page and "trap-mid: It has a *backdoor*" in page and "&lt;b&gt;lies" in page
    for text in (markdown(result), model_card(result)):
        assert "must be told" in text and "- trap-mid: It has a \\*backdoor\\*" in text and "<b>" not in text
    console = Console(width=80, record=True, file=io.StringIO())
    show(result, console)
    text = console.export_text()
    assert "must be told" in text and "trap-mid: It has a *backdoor* for every class." in text
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_is_told_where_there_is_nothing_to_tell():
    plain = replace(comparison(), warnings=())
    assert all("must be told" not in text for text in (html(plain, None), markdown(plain), model_card(plain)))
