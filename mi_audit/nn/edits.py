"""Changes of a network's architecture as plain data, so that a manifest can repeat them on a fresh network."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from mi_audit.core.defense import Edit
from mi_audit.core.errors import ConfigError
from mi_audit.nn import skips, skips_truncation
from mi_audit.nn.group_norm import group_norm
from mi_audit.nn.heads import bottleneck_head, low_rank_head

SEAL = "edits_seal"  # a tensor in every edited network: no stock class loads its weights by mistake
OUTPUT = "output"  # the edit of what an API answers; it changes no network
EDITS: Mapping[str, Callable[..., None]] = {
    skips.NAME: skips.scale,
    skips_truncation.NAME: skips_truncation.truncate,
    "low-rank-head": low_rank_head,
    "bottleneck-head": bottleneck_head,
    "group-norm": group_norm,
}


def apply(net: nn.Module, edits: Sequence[Edit], done: Sequence[Edit] = ()) -> None:
    """Repeat `edits` on `net`, in their order, and seal it with the digest of all; without edits nothing is done.

    Args:
        net: The network proper, as its library builds it; changed in place.
        edits: As `Defense.edits` returned them. Edits called `output` change no network and are skipped.
        done: Edits that were applied to it before.

    Raises:
        ConfigError: An edit is unknown, has other settings than its function takes, or does not fit the network.
    """
    changes = structural(edits)
    for edit in changes:
        name, settings = str(edit.get("edit")), {key: value for key, value in edit.items() if key != "edit"}
        if name not in EDITS:
            raise ConfigError(f"expected an edit of {', '.join(EDITS)}, got {name!r}; update mi-audit")
        try:
            EDITS[name](net, **settings)
        except TypeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"expected the settings of the edit {name!r}, got '{reason}'; the manifest is of another version"
            ) from error
    if changes:
        net.register_buffer(SEAL, seal((*structural(done), *changes)))


def structural(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Those of `edits` that change the network."""
    return tuple(edit for edit in edits if edit.get("edit") != OUTPUT)


def seal(edits: Sequence[Edit]) -> torch.Tensor:
    """Eight bytes that stand for `edits`."""
    digest = hashlib.blake2b(json.dumps([dict(edit) for edit in edits], sort_keys=True).encode(), digest_size=8)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
