"""From what the user typed to a file of weights, or to published weights."""

from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import timm
import torchvision
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from mi_audit.core.errors import TargetError
from mi_audit.store.architectures import complete_name
from mi_audit.store.checkpoints import SUFFIXES
from mi_audit.store.manifest import Declared

PUBLISHED = ("timm:", "torchvision:")
NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")  # the order in which timm looks
FORMS = "a file, a folder, local-dir:PATH, hf-hub:org/name, timm:NAME or torchvision:NAME@WEIGHTS"


def locate(ref: str) -> Path:
    """The file of weights that a reference names; a hub repository is downloaded.

    Raises:
        TargetError: There is no such file, or it cannot be told which one is meant.
    """
    scheme, colon, rest = ref.partition(":")
    if colon and scheme == "hf-hub":
        return _in_folder(_download(rest), ref)
    if colon and scheme == "local-dir":
        return _in_folder(Path(rest).expanduser(), ref)
    if colon and scheme in ("built-in", "py"):
        raise TargetError(
            f"expected weights, got the architecture {ref}; give the file of weights and add --arch {ref}"
        )
    if colon and scheme in ("http", "https"):
        raise TargetError(f"expected a local file, got the address {ref}; download it first")
    path = Path(ref).expanduser()
    if path.is_dir():
        return _in_folder(path, ref)
    if not path.is_file():
        raise TargetError(f"expected {FORMS}, got no file at {ref}; correct the path")
    return path


def published(ref: str) -> tuple[nn.Module, Declared]:
    """A network of timm or torchvision with its published weights, downloaded unless cached, and what is known of it.

    Raises:
        TargetError: There are no such weights, or they cannot be downloaded.
    """
    named, _, weights = ref.partition("@")
    arch = complete_name(named, "reference")
    family, _, name = arch.partition(":")
    try:
        if family == "timm":
            return timm.create_model(name, pretrained=True), Declared.of("reference", arch=arch)
        chosen = torchvision.models.get_model_weights(name)[weights or "DEFAULT"]
        net = torchvision.models.get_model(name, weights=chosen)
    except KeyError as error:
        known = ", ".join(member.name for member in torchvision.models.get_model_weights(name))
        raise TargetError(f"expected {name}@ one of {known}, got {weights!r}; correct the reference") from error
    except (HfHubHTTPError, URLError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TargetError(
            f"expected the published weights of {ref}, got '{reason}'; check the name and the network"
        ) from error
    facts = chosen.transforms()
    return net, Declared.of(
        "published weights", arch=arch, size=facts.crop_size[0], mean=tuple(facts.mean), std=tuple(facts.std),
        class_names=tuple(chosen.meta["categories"]),
    )  # fmt: skip


def _download(repository: str) -> Path:
    name, _, revision = repository.partition("@")
    safe = ["*.json", "*.safetensors"]
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=safe))
        if not list(folder.glob("*.safetensors")):
            patterns = ["*.json", "*.bin", "*.pth"]
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TargetError(
            f"expected the repository hf-hub:{name}, got '{reason}'; check the name and the network"
        ) from error
    return folder


def _in_folder(folder: Path, ref: str) -> Path:
    if not folder.is_dir():
        raise TargetError(f"expected a folder at {folder}, got none; correct {ref}")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    chosen = [folder / name for name in NAMES if folder / name in files]
    chosen = chosen or [file for file in files if file.suffix == ".safetensors"] or files
    if not chosen:
        raise TargetError(f"expected weights in {folder}, got no {', '.join(SUFFIXES[:4])} file; correct {ref}")
    if chosen[0].name not in NAMES and len(chosen) > 1:
        names = ", ".join(file.name for file in chosen[:5])
        raise TargetError(f"expected one file of weights in {folder}, got {names}; name the file")
    return chosen[0]
