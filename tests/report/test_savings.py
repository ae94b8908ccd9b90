from dataclasses import replace

from mi_audit.core.report import StepFacts
from mi_audit.report import savings
from mi_audit.report.html import html
from mi_audit.report.markdown import markdown
from tests.report import sample
from tests.report.test_terminal import screen

STOPPED = StepFacts(stage="descend", asked=1500, rows=160, stopped=0.875, mean=412.4, median=300.0)
WHOLE = StepFacts(stage="fine", asked=2000, rows=160, stopped=0.0, mean=2000.0, median=2000.0, note="it is planned")
SENTENCE = (
    "search descend: 412 of 1,500 steps on average (median 300); 88% of 160 latents stopped early, which saved "
    "73% of the steps"
)


def audit():
    report = sample.audit()
    return replace(report, attacks=(replace(report.attacks[0], steps=(STOPPED, WHOLE)), *report.attacks[1:]))


def test_sentences_say_what_was_saved_and_why_nothing_was():
    attack = audit().attacks[0]
    assert savings.steps(attack) == (SENTENCE, "search fine: all 2,000 steps, because it is planned")
    assert savings.steps(audit().attacks[1]) == ()


def test_every_side_of_a_comparison_is_named():
    both = savings.sentences(replace(sample.comparison(), before=audit(), after=audit()))
    assert [text.partition(",")[0] for text in both] == ["before", "before", "after", "after"]
    assert savings.sentences(sample.comparison()) == ()


def test_pages_show_them_only_when_there_are_any():
    assert SENTENCE in html(audit(), None) and "steps taken" not in html(sample.audit(), None)
    assert "**Steps that searches took**" in markdown(audit()) and "412 of 1,500 steps" in markdown(audit())
    assert "Steps that searches took" not in markdown(sample.audit())


def told(result):
    return " ".join(screen(result).split())


def test_the_screen_shows_them_too():
    assert f"Steps taken. GMI, {SENTENCE}. Steps taken. GMI, search fine: all 2,000 steps" in told(audit())
    both = told(replace(sample.comparison(), before=audit(), after=audit()))
    assert f"Steps taken. before, GMI, {SENTENCE}." in both and f"Steps taken. after, GMI, {SENTENCE}." in both
    assert "Steps taken" not in told(sample.audit())


def test_the_screen_counts_what_it_has_no_room_for():
    report = audit()
    many = replace(report, attacks=(replace(report.attacks[0], steps=(STOPPED,) * 11), *report.attacks[1:]))
    assert screen(many).count("Steps taken.") == 8 and "and 3 more searches in the report" in screen(many)
