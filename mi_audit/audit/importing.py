"""Published generators, brought into our own format."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_audit.core.errors import ConfigError, TargetError
from mi_audit.nn.stylegan2 import SLOW, TAPS, Generator, Shape
from mi_audit.store.files import hash_file
from mi_audit.store.stylegan2_pickle import DAMAGE, Record, licence_of, read_generator
from mi_audit.store.weights import write_weights

NAMES = {"affine": "style", "noise_const": "noise", "noise_strength": "strength"}
PLACES = {f"b{4 << place}": place for place in range(9)}  # blocks by name: b4, b8, ... b1024
LARGEST = torch.finfo(torch.float32).max
LONGEST = 200  # characters of what went wrong that a message repeats
PARTS = {"conv0": "grow", "conv1": "refine", "torgb": "colour"}


def import_generator(source: Path, output: Path, *, accepted: bool = False) -> dict[str, Any]:
    """Read the averaged generator of a StyleGAN2-ADA pickle and write its weights; nothing in the file is run.

    Args:
        source: The pickle.
        output: The safetensors file to write; `priors.stylegan2.weights` names it.
        accepted: Whether the user accepts the licence, for the record.

    Raises:
        TargetError: The file is unsafe, damaged, or of a generator that differs from StyleGAN2-ADA's usual one.
    """
    record = read_generator(source)
    try:
        weights = renamed(record)
        shape = Shape.of(weights)
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in Generator(shape).state_dict().items()}
    except (*DAMAGE, ConfigError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        raise TargetError(f"expected StyleGAN2's generator, got one with '{told}'; import another file") from error
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        odd = sorted(name for name in expected.keys() ^ weights.keys()) or ["a shape"]
        raise TargetError(
            f"expected the tensors of StyleGAN2's generator, got a difference in {odd[0]}; import another"
        )
    facts = {
        "recipe": "stylegan2",
        "source": source.name,
        "source_sha256": hash_file(source),
        "licence": licence_of(record),
        "licence_accepted": accepted,
        "size": shape.size,
        "channels": shape.channels,
    }
    write_weights(output, weights, facts)
    return {**facts, "file": str(output), "parameters": sum(tensor.numel() for tensor in weights.values())}


def renamed(record: Record) -> dict[str, Tensor]:
    """The state of our generator from that of the published one.

    Raises:
        TargetError: The generator knows classes, has another architecture, activation or bound than there is, learned
            its mapping at another speed, or resamples with another filter.
    """
    settings, tensors = record.settings, record.tensors()
    synthesis, mapping = settings.get("synthesis_kwargs") or {}, settings.get("mapping_kwargs") or {}
    if settings.get("c_dim"):
        raise TargetError("expected a generator without classes, got one that takes labels; import another file")
    if synthesis.get("architecture", "skip") != "skip":
        raise TargetError(
            f"expected the architecture 'skip', got {synthesis['architecture']!r:.40}; import another file"
        )
    for part in (synthesis, mapping):
        if part.get("activation", "lrelu") != "lrelu":
            raise TargetError(f"expected the activation 'lrelu', got {part['activation']!r:.40}; import another file")
    if mapping.get("lr_multiplier", SLOW) != SLOW:
        raise TargetError(
            f"expected a mapping network whose lr_multiplier is {SLOW}, got {mapping['lr_multiplier']!r:.40}; "
            "import another file"
        )
    usual = torch.tensor(TAPS)
    usual = torch.outer(usual, usual) / 64
    found: dict[str, Tensor] = {
        "bound": torch.tensor(_bound(synthesis.get("conv_clamp"))),
        "length": torch.zeros(()),
    }
    for name, tensor in tensors.items():
        place, _, last = name.rpartition(".")
        if last == "resample_filter":
            if tensor.shape != usual.shape or not torch.allclose(tensor.float(), usual):
                raise TargetError(f"expected the filter [1 3 3 1], got another one in {place}; import another file")
            continue
        found[_ours(name)] = tensor.float()
    return found


def _bound(clamp: object) -> float:
    """The bound as our generator keeps it: 0 is none."""
    if clamp is None:
        return 0.0
    if not isinstance(clamp, int | float) or not 0 < clamp < LARGEST:
        raise TargetError(f"expected a conv_clamp above 0, got {clamp!r:.40}; import another file")
    return float(clamp)


def _ours(name: str) -> str:
    parts = name.split(".")
    match parts:
        case ["mapping", "w_avg"]:
            return "mapping.average"
        case ["mapping", layer, kind] if layer.startswith("fc"):
            return f"mapping.layers.{layer.removeprefix('fc')}.{kind}"
        case ["synthesis", block, "const"] if block == "b4":
            return "blocks.0.start"
        case ["synthesis", block, part, *rest] if part in PARTS and block in PLACES:
            place = PLACES[block]
            return ".".join([f"blocks.{place}", PARTS[part], *(NAMES.get(word, word) for word in rest)])
        case _:
            raise TargetError(f"expected a tensor of StyleGAN2's generator, got {name!r:.80}; import another file")
