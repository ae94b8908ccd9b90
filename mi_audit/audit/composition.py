"""`--method a+b`: several defenses over one training, in the order of their slots; impossible pairs are refused."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations

from mi_audit.audit import registry
from mi_audit.audit.plan import FREEZING, parts_of
from mi_audit.core.defense import Defense, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.train.defended import Parts


@dataclass(frozen=True, slots=True)
class Composition:
    """The defenses of one training.

    Attributes:
        parts: By command-line name, in order of application.
        doubts: Pairs that nobody published, with what may go wrong.
    """

    parts: Parts
    doubts: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The name on the command line; `none` for the undefended twin."""
        return "+".join(self.parts) or "none"

    @property
    def kind(self) -> str:
        """The kinds of all parts, each once."""
        return ", ".join(dict.fromkeys(part.kind for part in self.parts.values())) or "none"

    @property
    def adaptive(self) -> str:
        """What an attacker who knows the defenses would do."""
        if len(self.parts) == 1:
            return next(iter(self.parts.values())).adaptive
        return "; ".join(f"{name}: {part.adaptive}" for name, part in self.parts.items())

    @property
    def cautions(self) -> tuple[str, ...]:
        """What has to be told with a model so trained, once each, behind the names of the parts it is about."""
        about: dict[str, list[str]] = {}
        for name, part in self.parts.items():
            if part.caution:
                about.setdefault(part.caution, []).append(name)
        return tuple(f"{', '.join(names)}: {text}" for text, names in about.items())


UNDEFENDED = Composition({})


def compose(method: str, settings: Mapping[str, object], freeze: str | None = None) -> Composition:
    """The defenses that `method` names, each with its settings.

    Args:
        method: Names joined by `+`; a published combination counts as its parts, `none` as no defense.
        settings: Tables by name of the part; for a single defense its settings may stand alone.
        freeze: Of `--freeze`: the cut of the part that freezes; TL-DMI is added when there is none. With `none` it is
            not, and settings for it are left aside: they are meant for the other cuts of a search or a sweep.

    Raises:
        ConfigError: A name or a setting is unknown, or two parts cannot go together.
    """
    names = parts_of(method)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"expected every defense once, got {twice[0]} twice in {method!r}; remove one")
    known = registry.defenses()
    types = {name: registry.pick("defense", known, name) for name in names}
    freezing = [name for name, part in types.items() if Slot.FREEZE in part.slots]
    if freeze is not None and freeze != "none" and not freezing:
        types[FREEZING], freezing = known[FREEZING], [FREEZING]
    if freeze == "none" and not freezing:
        settings = {name: value for name, value in settings.items() if name != FREEZING}
    if not types:
        raise ConfigError(f"expected a defense, got --method {method}; see `mi-audit list defenses`")
    tables = _tables(types, settings)
    if freeze is not None and freezing:
        tables[freezing[0]] = {**tables[freezing[0]], "freeze": freeze}
    parts = {name: registry.build("defense", part, name, tables[name]) for name, part in types.items()}
    ordered = dict(sorted(parts.items(), key=lambda pair: min(pair[1].slots)))
    _check(ordered)
    return Composition(ordered, tuple(_doubts(ordered)))


def _tables(types: Mapping[str, type[Defense]], settings: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """The settings of every part."""
    by_part = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    alone = {name: value for name, value in settings.items() if name not in by_part}
    strangers = [name for name in by_part if name not in types]
    if strangers:
        raise ConfigError(
            f"expected settings of {', '.join(types)}, got some of {strangers[0]}; add it to --method or remove them"
        )
    if alone and len(types) > 1:
        raise ConfigError(
            f"expected settings by defense, got {next(iter(alone))!r} for {' and '.join(types)}; "
            f"write --set {next(iter(types))}.{next(iter(alone))}=..."
        )
    return {name: {**alone, **by_part.get(name, {})} for name in types}


def _check(parts: Parts) -> None:
    """Refuse two defenses in one exclusive slot, and pairs that undo or break each other."""
    for slot in Slot:
        filling = [name for name, part in parts.items() if slot in part.slots]
        if slot.exclusive and len(filling) > 1:
            raise ConfigError(
                f"expected one defense that fills the slot {slot.name.lower()}, got {' and '.join(filling)}; keep one"
            )
    for one, other in permutations(parts, 2):
        if other in parts[one].excludes:
            raise ConfigError(
                f"expected defenses that go together, got {one} with {other}: {parts[one].excludes[other]}; keep one"
            )
    private = [name for name, part in parts.items() if Slot.STEP in part.slots]
    coupling = [name for name, part in parts.items() if Slot.TERM in part.slots and not part.only_notes]
    if private and coupling:
        raise ConfigError(
            f"expected {private[0]} with the loss of each picture alone, got {coupling[0]}, whose term would escape "
            "the noise that the privacy budget counts; keep one"
        )
    resized = [name for name, part in parts.items() if any("batch_size" in phase.recipe for phase in part.phases())]
    if private and resized:
        raise ConfigError(
            f"expected {private[0]} with batches of one size, which its noise is computed for, got {resized[0]} with a "
            f"phase of others; leave {resized[0]} out"
        )
    for name, part in parts.items():
        conflict = part.conflicts({other: one for other, one in parts.items() if other != name})
        if conflict:
            raise ConfigError(conflict)
    balanced = {name: part.images_per_class for name, part in parts.items() if part.images_per_class}
    if len(set(balanced.values())) > 1:
        raise ConfigError(f"expected one number of pictures per class in a batch, got {balanced}; set them alike")


def _doubts(parts: Parts) -> Iterator[str]:
    for one, other in combinations(parts, 2):
        doubt = parts[one].untested.get(other) or parts[other].untested.get(one)
        if doubt:
            yield f"{one} with {other} has no published measurement: {doubt}"
