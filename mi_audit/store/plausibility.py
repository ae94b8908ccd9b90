"""What a manifest says, held against the tensors of the file before a network is built: anybody can write one."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from mi_audit.core.defense import Edit
from mi_audit.core.errors import ConfigError, TargetError
from mi_audit.nn import edits as surgery
from mi_audit.nn.classifier import check_size
from mi_audit.store.architectures import check_fit
from mi_audit.store.manifest import Declared


def check_seal(known: Declared, tensors: Mapping[str, Tensor], ref: str) -> None:
    """Refuse weights whose architecture was edited when their manifest, which says how, is missing or another's."""
    sealed, structural = tensors.get(surgery.SEAL), surgery.structural(known.edits or ())
    if sealed is None and not structural:
        return
    if sealed is None or not structural or not torch.equal(sealed.cpu(), surgery.seal(structural)):
        raise TargetError(
            f"expected the manifest of {ref}, whose network was changed by a defense, got "
            f"{'another one' if structural else 'none'}; keep the .safetensors as written, or the .json beside it"
        )


def check_counts(declared: Declared, tensors: Mapping[str, Tensor], ref: str) -> None:
    """Refuse sizes that no network with these tensors can have, before one is built with them."""
    if declared.size is not None:
        check_size(declared.size)
    largest = max((3, *(side for tensor in tensors.values() for side in tensor.shape)))  # 3: unless channels are stated
    for fact, flag in (("num_classes", "--num-classes"), ("channels", "--channels")):
        value = getattr(declared, fact)
        if value is not None and not 1 <= value <= largest:
            raise TargetError(
                f"expected {fact} from 1 to {largest}, the longest side of a tensor in {ref}, got {value} "
                f"({declared.origins[fact]}); correct {flag} or the sidecar"
            )


def rehearse(net: nn.Module, edits: Sequence[Edit], tensors: Mapping[str, Tensor], arch: str, ref: str) -> None:
    """Repeat `edits` on a copy of `net` without memory, so that no size in a manifest is allocated unless it fits.

    Raises:
        TargetError: An edit fails, or the edited network has other tensors than the file.
    """
    if not surgery.structural(edits):
        return
    blanks: dict[int, object] = {
        id(value): nn.Parameter(value.detach().to("meta"), value.requires_grad) for value in net.parameters()
    }
    blank = deepcopy(net, blanks | {id(value): value.to("meta") for value in net.buffers()})
    try:
        with torch.device("meta"):
            surgery.apply(blank, edits)
    except ConfigError as error:
        raise TargetError(f"{error} ({ref})") from error
    except (RuntimeError, AttributeError, ValueError, TypeError) as error:  # what JSON can do to code of libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TargetError(
            f"expected edits that fit {arch}, got the error '{reason}' from those in the manifest of {ref}; "
            "keep the manifest as written"
        ) from error
    check_fit(blank, tensors, arch, ref)
