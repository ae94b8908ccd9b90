"""What is declared about a classifier, in flags, sidecar files and metadata, each fact with where it was said."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from reprlib import repr as short
from typing import Any, TypeGuard

from mi_audit.core.errors import TargetError
from mi_audit.store.documents import UNREADABLE
from mi_audit.store.weights import KEY

# Arguments of timm's factory that read files or change what is returned; never taken from a file beside the model.
FORBIDDEN = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only")


MARK = {"written_by": "mi-audit", "manifest": 1}  # tells our manifest, which was verified, from other people's sidecars


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """Facts about a classifier; None where nothing was said.

    Attributes:
        order: Output of the network for each class of the data.
        edits: Changes of the architecture that a defense made, in the order in which to repeat them.
        origins: Where each fact that is not None came from.
    """

    arch: str | None = None
    num_classes: int | None = None
    channels: int | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    order: tuple[int, ...] | None = None
    logits_index: int | None = None
    model_kwargs: Mapping[str, object] | None = None
    defense: Mapping[str, object] | None = None
    edits: tuple[Mapping[str, object], ...] | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, origin: str, **facts: Any) -> "Declared":  # noqa: ANN401
        """The given facts, all from `origin`."""
        return cls(**facts, origins={name: origin for name, value in facts.items() if value is not None})

    def over(self, other: "Declared") -> "Declared":
        """These facts, with those of `other` where nothing is said here."""
        gaps = {
            each.name: getattr(other, each.name)
            for each in fields(self)
            if each.name != "origins" and getattr(self, each.name) is None
        }
        return replace(self, **gaps, origins={**other.origins, **self.origins})


def beside(path: Path) -> Declared:
    """What the files beside a file of weights say: `<stem>.json`, else `config.json`, then `preprocessor_config.json`.

    Raises:
        TargetError: A sidecar is not text in UTF-8 or not JSON, or a fact in it has the wrong type.
    """
    declared = Declared()
    named, common = path.with_suffix(".json"), path.with_name("config.json")
    for file in (named if named.is_file() else common, path.with_name("preprocessor_config.json")):
        if file.is_file():
            declared = declared.over(read_json(_text_of(file), f"sidecar {file.name}", str(file)))
    return declared


def within(metadata: Mapping[str, str], source: str) -> Declared:
    """What safetensors metadata say: our manifest, or the name of an architecture under a customary key."""
    if KEY in metadata:
        return read_json(metadata[KEY], "manifest in the metadata", f"the metadata of {source}")
    keys = ("architecture", "timm.architecture", "modelspec.architecture")
    arch = next((metadata[key] for key in keys if key in metadata), None)
    return Declared.of("metadata", arch=arch)


def read_json(text: str, origin: str, source: str) -> Declared:
    """Facts in a JSON object written by mi-audit, timm or Hugging Face.

    Raises:
        TargetError: It is not a JSON object, or a fact has the wrong type; the message names `source`.
    """
    try:
        content = json.loads(text)
    except UNREADABLE as error:
        raise TargetError(f"expected JSON in {source}, got '{error}'; correct or delete it") from error
    if not isinstance(content, dict):
        raise TargetError(f"expected a JSON object in {source}, got {type(content).__name__}; correct or delete it")
    try:
        return Declared.of(_origin(content, origin), **_facts(content))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise TargetError(
            f"expected facts about a classifier in {source}, got '{error}'; correct or delete it"
        ) from error


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TargetError(f"expected text in UTF-8 in {file}, got '{error}'; correct or delete it") from error


def canonical(content: Mapping[str, object]) -> str:
    """JSON with sorted keys, the same for the same content."""
    return json.dumps(content, sort_keys=True, indent=2, allow_nan=False) + "\n"


def _origin(content: Mapping[str, Any], origin: str) -> str:
    return (
        origin.replace("sidecar", "manifest")
        if all(content.get(key) == value for key, value in MARK.items())
        else origin
    )


def _facts(content: Mapping[str, Any]) -> dict[str, object]:
    timm = content.get("pretrained_cfg") or {}
    shape = content.get("input_size") or timm.get("input_size")
    kwargs = content.get("model_kwargs") or content.get("model_args")
    _refuse_reaching(kwargs)
    return {
        "arch": _text(content.get("arch") or content.get("architecture")),
        "num_classes": _whole(content.get("num_classes") or content.get("num_labels")),
        "channels": _whole(content.get("channels") or (shape[0] if shape else None)),
        "size": _whole((content.get("size") and _side(content["size"])) or (shape[-1] if shape else None)),
        "mean": _numbers(content.get("mean") or content.get("image_mean") or timm.get("mean")),
        "std": _numbers(content.get("std") or content.get("image_std") or timm.get("std")),
        "class_names": _names(content),
        "order": _wholes(content.get("order")),
        "logits_index": _whole(content.get("logits_index")),
        "model_kwargs": dict(kwargs) if kwargs else None,
        "defense": dict(content["defense"]) if content.get("defense") else None,
        "edits": tuple(dict(edit) for edit in content["edits"]) if content.get("edits") else None,
    }


def _names(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = content.get("class_names") or content.get("label_names")
    if content.get("id2label"):
        names = [content["id2label"][key] for key in sorted(content["id2label"], key=int)]
    if names is not None and not isinstance(names, list):
        raise TypeError("class names that are no list")
    return tuple(map(str, names)) if names else None


def _side(value: object) -> object:
    """Hugging Face writes the input size as a number or as an object."""
    return value.get("height") or value.get("shortest_edge") if isinstance(value, dict) else value


def _refuse_reaching(kwargs: Mapping[str, object] | None) -> None:
    reaching = [name for name in kwargs or {} if name in FORBIDDEN]
    if reaching:
        raise ValueError(f"the model argument {reaching[0]}, which a file may not set")


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"the name {value!r}")
    return value


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(value: object) -> int | None:
    if value is not None and not _is_whole(value):
        raise TypeError(f"{short(value)} instead of a whole number")
    return value


def _wholes(values: object) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(_is_whole(value) for value in values):
        raise TypeError(f"{short(values)} instead of whole numbers")
    return tuple(values)


def _numbers(values: object) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(_is_whole(value) or isinstance(value, float) for value in values):
        raise TypeError(f"{short(values)} instead of numbers")
    if not all(isfinite(value) for value in values):
        raise ValueError(f"{short(values)} instead of finite numbers")
    return tuple(float(value) for value in values)
