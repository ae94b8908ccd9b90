"""Names on the command line become defenses that can work together, or an error says why not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest

from mi_audit.audit import composition, plan, registry
from mi_audit.audit.composition import compose
from mi_audit.core.defense import Defense, Phase, Slot
from mi_audit.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Plain(Defense):
    kind: ClassVar = "data"
    adaptive: ClassVar = "try harder"
    slots: ClassVar = frozenset({Slot.DATA})
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Freezing(Plain):
    kind: ClassVar = "information"
    slots: ClassVar = frozenset({Slot.FREEZE})
    freeze: str = "80%"


@dataclass(frozen=True, kw_only=True)
class Head(Plain):
    slots: ClassVar = frozenset({Slot.HEAD})
    untested: ClassVar[Mapping[str, str]] = {"plain": "both act on the head"}


@dataclass(frozen=True, kw_only=True)
class OtherHead(Head):
    untested: ClassVar[Mapping[str, str]] = {}


@dataclass(frozen=True, kw_only=True)
class Term(Plain):
    slots: ClassVar = frozenset({Slot.TERM})
    excludes: ClassVar[Mapping[str, str]] = {"plain": "it undoes it"}

    @property
    def images_per_class(self):
        return 4


@dataclass(frozen=True, kw_only=True)
class OtherTerm(Plain):
    slots: ClassVar = frozenset({Slot.TERM})

    @property
    def images_per_class(self):
        return 2


@dataclass(frozen=True, kw_only=True)
class Private(Plain):
    slots: ClassVar = frozenset({Slot.STEP})


@dataclass(frozen=True, kw_only=True)
class Longer(Plain):
    slots: ClassVar = frozenset({Slot.PHASE})

    def phases(self):
        return (Phase(name="refinement", when="after", epochs=1),)


@dataclass(frozen=True, kw_only=True)
class Resized(Longer):
    def phases(self):
        return (Phase(name="refinement", when="after", epochs=1, recipe={"batch_size": 4}),)


@dataclass(frozen=True, kw_only=True)
class Noting(Plain):
    slots: ClassVar = frozenset({Slot.TERM})
    only_notes: ClassVar = True


@dataclass(frozen=True, kw_only=True)
class Fussy(Plain):
    def conflicts(self, others):
        alone = not others or self.strength == 1
        return "" if alone else f"got {self.strength:g} with {', '.join(others)}; set fussy.strength=1"


KNOWN = {
    "plain": Plain, "tldmi": Freezing, "head": Head, "other-head": OtherHead, "term": Term, "other-term": OtherTerm,
    "private": Private, "longer": Longer, "resized": Resized, "noting": Noting, "fussy": Fussy,
}  # fmt: skip


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(registry, "defenses", lambda: KNOWN)
    monkeypatch.setattr(plan, "COMBINATIONS", {"both": ("head", "plain")})


def test_parts_come_in_the_order_of_their_slots():
    made = compose("plain+tldmi+head", {})
    assert list(made.parts) == ["head", "tldmi", "plain"] and made.method == "head+tldmi+plain"
    assert made.kind == "data, information"


def test_a_published_combination_is_its_parts():
    assert list(compose("both+tldmi", {}).parts) == ["head", "tldmi", "plain"]
    assert compose("both", {}).doubts == ("head with plain has no published measurement: both act on the head",)


def test_settings_go_to_their_part():
    made = compose("plain+tldmi", {"plain": {"strength": 2}, "tldmi": {"freeze": "stage:3"}})
    assert made.parts["plain"].strength == 2.0 and made.parts["tldmi"].freeze == "stage:3"
    assert compose("plain", {"strength": 3}).parts["plain"].strength == 3.0
    assert compose("plain", {"plain": {"strength": 4}}).parts["plain"].strength == 4.0


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("plain+tldmi", {"strength": 2}, "by defense, got 'strength' for plain and tldmi; write --set"),
        ("plain", {"tldmi": {"freeze": "1%"}}, "expected settings of plain, got some of tldmi"),
        ("plain", {"strngth": 1}, "did you mean 'strength'"),
        ("plian", {}, "did you mean 'plain'"),
        ("plain+plain", {}, "expected every defense once, got plain twice"),
        ("none", {}, "expected a defense, got --method none"),
        ("head+other-head", {}, "expected one defense that fills the slot head, got head and other-head"),
        ("term+plain", {}, "got term with plain: it undoes it"),
        ("plain+term", {}, "got term with plain: it undoes it"),
        ("private+term", {}, "expected private with the loss of each picture alone, got term, whose term would escape"),
        ("private+resized", {}, "private with batches of one size, .*, got resized with a phase of others"),
        ("term+other-term", {}, "expected one number of pictures per class"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(method, settings, message):
    with pytest.raises(ConfigError, match=message):
        compose(method, settings)


def test_a_privacy_budget_may_span_phases_and_parts_that_only_note():
    assert list(compose("private+longer+noting", {}).parts) == ["noting", "longer", "private"]


def test_parts_look_at_the_settings_of_the_others():
    with pytest.raises(ConfigError, match=r"got 2 with plain; set fussy\.strength=1"):
        compose("fussy+plain", {"fussy": {"strength": 2}})
    assert list(compose("fussy+plain", {"fussy": {"strength": 1}}).parts) == ["fussy", "plain"]
    assert compose("fussy", {"strength": 2}).method == "fussy"


def test_freeze_sets_the_cut_of_the_part_that_freezes_and_adds_one_otherwise():
    assert compose("tldmi", {}, "stage:2").parts["tldmi"].freeze == "stage:2"
    assert compose("tldmi", {}, "none").parts["tldmi"].freeze == "none"
    assert list(compose("plain", {}, "60%").parts) == ["tldmi", "plain"]
    assert list(compose("plain", {}, "none").parts) == ["plain"]
    assert list(compose("none", {}, "60%").parts) == ["tldmi"]


def test_settings_of_a_freezing_that_freeze_adds_are_left_aside_with_none():
    settings = {"plain": {"strength": 2}, "tldmi": {"strength": 3}}
    assert compose("plain", settings, "60%").parts["tldmi"] == Freezing(strength=3.0, freeze="60%")
    assert compose("plain", settings, "none").parts == {"plain": Plain(strength=2.0)}
    assert compose("tldmi", {"tldmi": {"strength": 3}}, "none").parts == {
        "tldmi": Freezing(strength=3.0, freeze="none")
    }
    with pytest.raises(ConfigError, match="got some of head"):
        compose("plain", {"head": {"strength": 1}}, "none")


def test_the_adaptive_attack_of_every_part_is_named():
    assert compose("plain", {}).adaptive == "try harder"
    assert compose("plain+tldmi", {}).adaptive == "tldmi: try harder; plain: try harder"
    assert composition.UNDEFENDED.method == "none" and composition.UNDEFENDED.kind == "none"


def test_what_has_to_be_told_is_said_once_for_all_parts_it_is_about(monkeypatch):
    known = registry.defenses()
    assert compose("plain+tldmi", {}).cautions == ()
    for name, text in {"plain": "It hides.", "head": "It hides.", "term": "It lies.", "tldmi": ""}.items():
        monkeypatch.setattr(known[name], "caution", text)
    assert compose("plain", {}).cautions == ("plain: It hides.",)
    assert compose("head+plain+tldmi", {}).cautions == ("head, plain: It hides.",)
    assert compose("head+term", {}).cautions == ("head: It hides.", "term: It lies.")
