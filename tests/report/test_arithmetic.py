from dataclasses import replace

from mi_audit.core.report import PrecisionFacts
from mi_audit.report import arithmetic
from mi_audit.report.html import html
from mi_audit.report.markdown import markdown
from tests.report import sample

WHY = "the median cosine between both is 0.63, below 0.8"
POOL = PrecisionFacts(stage="pool", searches=2, mixed=2, cosine=(0.991, 0.994))
CLIMB = PrecisionFacts(stage="climb", searches=4, mixed=3, cosine=(0.63, 0.97), reasons=(WHY,))
BROKEN = PrecisionFacts(stage="climb", searches=1, mixed=0, cosine=None, reasons=("not all numbers are finite",))


def audit(*facts, **more):
    report = sample.audit(**more)
    first, *others = report.attacks
    return replace(report, attacks=(replace(first, precision=facts), *others))


def test_every_stage_says_what_was_used_and_why():
    first = audit(POOL, CLIMB, BROKEN).attacks[0]
    assert arithmetic.lines(first) == (
        "pool: bfloat16 (cosine 0.99).",
        f"climb: bfloat16 in 3 of 4 searches (cosine 0.63 to 0.97), the others exact: {WHY}.",
        "climb: single precision instead of bfloat16: not all numbers are finite.",
    )


def test_notes_name_attack_and_side_and_are_silent_about_plain_single_precision():
    assert arithmetic.notes(sample.audit()) == ()
    report = audit(POOL)
    title = arithmetic.wording.attack_title(report.attacks[0].name)
    assert arithmetic.notes(report) == (f"{title}, pool: bfloat16 (cosine 0.99).",)
    both = sample.comparison(before=report, after=audit(BROKEN))
    assert [note.partition(":")[0] for note in arithmetic.notes(both)] == ["Before", "After"]


def test_reports_show_it_only_where_it_was_asked_for():
    asked, silent = audit(CLIMB), sample.audit()
    assert "bfloat16 in 3 of 4 searches" in html(asked, None) and "bfloat16" not in html(silent, None)
    assert "bfloat16 in 3 of 4 searches" in markdown(asked) and "bfloat16" not in markdown(silent)
