"""What a file of weights is, found out without running anything in it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mi_audit.audit import registry
from mi_audit.core.errors import TargetError
from mi_audit.nn import skips
from mi_audit.store.architectures import build, complete_name, defaults, seeded
from mi_audit.store.checkpoints import Checkpoint, open_checkpoint, recognise
from mi_audit.store.files import hash_file
from mi_audit.store.manifest import Declared, beside, within
from mi_audit.store.pickles import dangerous, globals_in, is_torchscript
from mi_audit.store.references import PUBLISHED, locate
from mi_audit.store.resolution import read_labels, resolve
from mi_audit.store.weights import hash_weights

FACTS = (
    "arch",
    "num_classes",
    "channels",
    "size",
    "mean",
    "std",
    "class_names",
    "order",
    "logits_index",
    "model_kwargs",
)
SURGERY = ("rolss", "ssf")  # defenses that scale skip connections, with their published settings


def inspect_model(
    ref: str,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    labels: Path | None = None,
    class_order: str = "auto",
    model_kwargs: Mapping[str, object] | None = None,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Every fact with its origin, the file's ledger, and the sidecar json that would make the model load without flags.

    Files that can run code are never run, whatever `allow_pickle` says; what they would call is listed instead.

    Raises:
        TargetError: There is no such file, or it is damaged.
    """
    del allow_pickle
    flags = Declared.of(
        "flag", arch=arch, num_classes=num_classes, channels=channels, size=size, mean=mean, std=std,
        class_names=read_labels(labels) if labels else None, model_kwargs=model_kwargs or None,
    )  # fmt: skip
    found: dict[str, Any] = {"ref": ref, "facts": {}, "parameters": None, "file": None, "config": None, "problems": []}
    return found | _found(ref, flags, class_order)


def inspect_skips(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The skip connections of an inspected model in the order in which they run, and what each defense would set.

    Args:
        found: What `inspect_model` found; of its weights nothing but the architecture is used.

    Returns:
        A row per skip connection: the fields of `nn.skips.Skip`, and its factor under each of `SURGERY`.

    Raises:
        ConfigError: The network has no skip connection that is known.
        TargetError: The architecture is not known.
    """
    facts = {name: fact["value"] for name, fact in found["facts"].items()}
    ref = str(found["ref"])
    arch = facts.get("arch") or (complete_name(ref.partition("@")[0], "reference") if _published(ref) else None)
    if arch is None:
        raise TargetError(f"expected an architecture to look for skip connections in, got none in {ref}; add --arch")
    usual = defaults(arch)
    size, channels = facts.get("size") or usual.size, facts.get("channels") or usual.channels or 3
    with seeded(0):
        classes, kwargs = facts.get("num_classes") or 2, facts.get("model_kwargs") or {}
        net = build(arch, num_classes=classes, channels=channels, size=size, kwargs=kwargs).eval()
    example = torch.zeros(1, channels, size or 64, size or 64)
    planned = {name: _planned(name, net, example) for name in SURGERY}
    return [
        asdict(skip) | {name: factors.get(skip.name, 1.0) for name, factors in planned.items()}
        for skip in skips.find(net, example)
    ]


def _planned(name: str, net: nn.Module, example: Tensor) -> Mapping[str, float]:
    """Factor by skip connection under the defense `name`."""
    (edit,) = registry.defenses()[name]().edits(net, example)
    return cast(Mapping[str, float], edit["factors"])


def _found(ref: str, flags: Declared, class_order: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if _published(ref):
        found["problems"] = [f"{ref} names published weights, which are downloaded when they are used"]
        return found
    path = locate(ref)
    found["file"] = _ledger(path)
    if not found["file"]["safe"]:
        found["problems"] = ["this file runs code when it is loaded; export it as safetensors, or add --allow-pickle"]
        return found
    checkpoint = open_checkpoint(path)
    found["file"] |= {"format": checkpoint.format, "notes": list(checkpoint.notes)}
    found["parameters"] = sum(tensor.numel() for name, tensor in checkpoint.tensors.items() if _is_parameter(name))
    found["sha256"] = hash_weights(checkpoint.tensors)
    declared, problem, alternatives = _resolved(checkpoint, flags, ref)
    found["facts"] = {
        name: {"value": getattr(declared, name), "origin": declared.origins.get(name, "unknown")} for name in FACTS
    }
    found["facts"]["class_order"] = {
        "value": class_order,
        "origin": "flag" if class_order != "auto" else "checked by accuracy",
    }
    found["alternatives"] = list(alternatives)
    if alternatives:
        problem = f"{', '.join((str(declared.arch), *alternatives))} fit these tensors; accuracy decides, or add --arch"
    found["problems"] = [problem] if problem else []
    found["config"] = _config(declared, certain=not alternatives)
    return found


def _published(ref: str) -> bool:
    return ref.startswith(PUBLISHED)


def _resolved(checkpoint: Checkpoint, flags: Declared, ref: str) -> tuple[Declared, str | None, tuple[str, ...]]:
    known = flags.over(beside(checkpoint.path)).over(within(checkpoint.metadata, str(checkpoint.path)))
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    try:
        resolved, alternatives = resolve(known, shapes, ref)
    except TargetError as error:  # the facts that are known are still worth showing
        return known, str(error), ()
    return resolved, None, alternatives


def _ledger(path: Path) -> dict[str, Any]:
    kind = recognise(path)
    names = () if kind == "safetensors" or is_torchscript(path) else globals_in(path)
    return {
        "path": str(path),
        "size": path.stat().st_size,
        "sha256": hash_file(path),
        "format": kind,
        "safe": kind == "safetensors" or (kind == "torch" and not dangerous(names)),
        "globals": list(names),
        "dangerous": list(dangerous(names)),
    }


def _config(declared: Declared, *, certain: bool) -> dict[str, Any]:
    """What a sidecar may say: no guess between architectures, and no code of the user's."""
    facts = {name: getattr(declared, name) for name in FACTS}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}
    if not certain or str(declared.arch).startswith("py:"):
        plain["arch"] = None
    return {name: value for name, value in plain.items() if value not in (None, [], {})}


def _is_parameter(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
