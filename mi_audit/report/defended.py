"""What a manifest says about a defense, arranged: parts, phases and facts, whatever somebody else wrote into it."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mi_audit.core.report import AuditReport, Comparison
from mi_audit.report import wording

SHOWN = ("method", "settings", "resolved", "phases", "cautions", "test_accuracy", "val_accuracy", "kind", "doubts")
TITLES = {
    "kind": "class",
    "init": "public start",
    "adaptive_attack": "adaptive attack",
    "freeze_search": "freeze search",
    "guarantee": "privacy guarantee",
}
FIRST = ("adaptive_attack", "guarantee", "seed", "recipe", "init", "freeze_search")  # the others follow


class Part(NamedTuple):
    """One defense of a combination: its settings, what it decided in a sentence, and the facts behind that.

    `adaptive` is the attack that knows it; empty when it stands among the facts of the whole.
    """

    name: str
    settings: Mapping[str, str]
    adaptive: str
    decided: str
    details: Mapping[str, object]


class Stage(NamedTuple):
    """One phase of the training: the epoch whose weights it kept, the loss there, and what else is to be told."""

    name: str
    epoch: str
    loss: Mapping[str, str]
    summary: str
    details: Mapping[str, object]


class Defended(NamedTuple):
    """The defense of a model; `folded` are facts of many lines, by their titles."""

    title: str
    facts: Mapping[str, str]
    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]
    doubts: tuple[str, ...]
    folded: Mapping[str, Mapping[str, object]]


def cautions(result: AuditReport | Comparison) -> tuple[str, ...]:
    """What those who rely on the model must be told, because of the defense that its manifest declares."""
    after = result.after if isinstance(result, Comparison) else result
    return tuple(dict.fromkeys(text for model in after.targets for text in _texts(model.defense.get("cautions"))))


def defended(result: AuditReport | Comparison) -> Defended | None:
    """The defense that was compared with its twin, else the one that the model declares; None without any."""
    after = result.after if isinstance(result, Comparison) else result
    own = result.defense if isinstance(result, Comparison) else {}
    about = own or next((model.defense for model in after.targets if model.defense), {})
    if not about or about.get("method") == "none":
        return None
    parts = _parts(about)
    told = ("adaptive_attack",) if any(part.adaptive for part in parts) else ()
    rest = {TITLES.get(key, key): about[key] for key in (*FIRST, *about) if key in about and key not in (*SHOWN, *told)}
    folded = {key: value for key, value in rest.items() if isinstance(value, Mapping)}
    return Defended(
        title="The defense" if own else "The defense, as the model declares it",
        facts=_facts(about) | {key: wording.setting(value) for key, value in rest.items() if key not in folded},
        parts=parts,
        stages=_stages(about),
        doubts=_texts(about.get("doubts")),
        folded={key: value for key, value in folded.items() if value},
    )


def _facts(about: Mapping[str, object]) -> dict[str, str]:
    """The few facts that come first."""
    found = {
        name: wording.setting(about[key]) for key, name in (("method", "method"), ("kind", "class")) if key in about
    }
    reached = (("test_accuracy", "test"), ("val_accuracy", "validation"))
    shares = [f"{share:.1%} on {on} images" for key, on in reached if isinstance(share := about.get(key), float)]
    found |= {"accuracy": ", ".join(shares)} if shares else {}
    spent = _mapping(about.get("guarantee")).get("summary")
    return found | ({TITLES["guarantee"]: str(spent)} if spent else {})


def _parts(about: Mapping[str, object]) -> tuple[Part, ...]:
    """The parts in the order of the method; settings that are not nested by part are those of the only one."""
    method = str(about.get("method", ""))
    names = method.split("+")
    settings, resolved = (_by_part(about.get(key), names) for key in ("settings", "resolved"))
    adaptive = _adaptive(str(about.get("adaptive_attack", "")), names)
    every = dict.fromkeys((*names, *settings))
    return tuple(_part(n, settings.get(n, {}), adaptive.get(n, ""), resolved.get(n, {})) for n in every if n)


def _adaptive(text: str, names: Sequence[str]) -> dict[str, str]:
    """What `a: attack; b: attack` says about each part; nothing when it is not of that form."""
    pieces = re.split(rf"(?:^|; )({'|'.join(map(re.escape, names))}): ", text)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True)) if len(names) > 1 and not pieces[0] else {}


def _by_part(value: object, names: Sequence[str]) -> dict[str, Mapping[str, object]]:
    mapping = _mapping(value)
    if any(name not in names for name in mapping):
        return {names[0]: mapping}
    return {name: _mapping(own) for name, own in mapping.items()}


def _part(name: str, settings: Mapping[str, object], adaptive: str, resolved: Mapping[str, object]) -> Part:
    said = {key: "not set" if value is None else wording.setting(value) for key, value in settings.items()}
    return Part(name, said, adaptive, str(resolved.get("summary", "")), _without(resolved, "summary"))


def _stages(about: Mapping[str, object]) -> tuple[Stage, ...]:
    """The phases in the order of the training: a manifest sorts its keys, so that each says its place."""
    phases = {name: _mapping(facts) for name, facts in _mapping(about.get("phases")).items()}
    places = {name: facts.get("place") for name, facts in phases.items()}
    order = sorted(phases, key=lambda name: place if isinstance(place := places[name], int) else 0)
    return tuple(_stage(name, phases[name]) for name in order)


def _stage(name: str, facts: Mapping[str, object]) -> Stage:
    loss = {key: wording.setting(part) for key, part in _mapping(facts.get("loss")).items()}
    kept, summary = wording.setting(facts.get("kept_epoch")), str(facts.get("summary", ""))
    return Stage(name, kept, loss, summary, _without(facts, "place", "loss", "kept_epoch", "summary"))


def _without(facts: Mapping[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in facts.items() if key not in keys}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()
