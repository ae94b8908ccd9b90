"""How well a counterfactual target does beside the model under audit: in sentences, and in doubts about its floor."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from mi_audit.audit.scene import Scene
from mi_audit.audit.strangers import Seating
from mi_audit.core.dataset import Dataset
from mi_audit.core.report import Quantity
from mi_audit.store.targets import LoadedModel
from mi_audit.train.accuracy import measured_accuracy

GIVE = "give --counterfactual MODEL, trained by you without the attacked people"
WORSE = 0.10  # accuracy below the model under audit from which the floor is in doubt
KNOWN = 0.50  # share of the attacked people's pictures put into their outputs, above which it seems to know them


@dataclass(frozen=True, slots=True)
class Seen:
    """How much the counterfactual target and the model under audit recognise, as shares of held-out images.

    Attributes:
        own, audited: Each of the two, of people who are not attacked. When all are, strangers take their place, and
            `audited` is None.
        theirs, theirs_audited: The same, of the attacked people's images: how many are put into their outputs.
    """

    own: Quantity
    audited: Quantity | None
    theirs: Quantity
    theirs_audited: Quantity


def recognised(scene: Scene, made: LoadedModel, model: LoadedModel, attacked: Sequence[int], held_out: Dataset) -> Seen:
    """How the counterfactual target and the model under audit do on `held_out`, and on pictures of the attacked."""
    theirs = rows(scene.splits.test, attacked, theirs=True)
    strangers = bool(torch.isin(held_out.labels, torch.tensor(attacked)).any())  # whom the model under audit never met
    return Seen(
        own=measured_accuracy(made, held_out, scene.device),
        audited=None if strangers else measured_accuracy(model, held_out, scene.device),
        theirs=measured_accuracy(made, theirs, scene.device),
        theirs_audited=measured_accuracy(model, theirs, scene.device),
    )


def rows(data: Dataset, attacked: Sequence[int], *, theirs: bool) -> Dataset:
    """The images of the attacked people, or of all others."""
    return data.select((torch.isin(data.labels, torch.tensor(attacked)) == theirs).nonzero().squeeze(1))


def figures(seen: Sequence[Seen]) -> list[str]:
    """The accuracies in sentences, as means over the seeds."""
    last: Seen = seen[-1]
    said: list[str] = []
    if last.own.count:
        people = "strangers, as nobody else is left" if last.audited is None else "the others"
        beside = "" if last.audited is None else f" (the model under audit: {_mean([one.audited for one in seen])})"
        said.append(
            f"Accuracy {_mean([one.own for one in seen])} on {last.own.count} held-out images of {people}{beside}."
        )
    if last.theirs.count:
        said.append(
            f"It puts {_mean([one.theirs for one in seen])} of {last.theirs.count} held-out images of those left "
            f"out into their outputs (the model under audit: {_mean([one.theirs_audited for one in seen])})."
        )
    if len(seen) > 1:
        said.append(f"Shares are means over {len(seen)} seeds, counts those of the last.")
    return said


def _mean(shares: Sequence[Quantity | None]) -> str:
    return f"{fmean(share.value for share in shares if share is not None and share.value is not None):.1%}"


def doubts(scene: Scene, seen: Sequence[Seen], seating: Seating | None, attacked: int) -> None:
    """Warn of what makes the floor too low or too high."""
    if seating is not None and (empty := attacked - len(seating.strangers)):
        scene.warn(
            f"{empty} of the {attacked} outputs of attacked people are empty in the counterfactual target, so its "
            "floor is too low; give --public in one folder per person, with as many people as are attacked"
        )
    for one in seen:
        if _value(one.audited) - _value(one.own) > WORSE:
            scene.warn(
                f"the counterfactual target recognises {_value(one.own):.0%} of held-out images of people who are not "
                f"attacked, the model under audit {_value(one.audited):.0%}: its floor may be too low; train it longer "
                f"with --set defend.epochs=N, or {GIVE}"
            )
        known = one.theirs.interval
        if seating is None and known is not None and known.low > KNOWN:
            scene.warn(
                f"the counterfactual target puts {_value(one.theirs):.0%} of the attacked people's held-out images "
                "into their outputs: was it trained on them? Then its floor is too high"
            )


def _value(share: Quantity | None) -> float:
    return 0.0 if share is None or share.value is None else share.value
