"""Formats that can run code: what they would call, found without running it, and a child process to run it."""

import os
import pickletools
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from io import BufferedReader, BytesIO
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mi_audit.core.errors import TargetError
from mi_audit.store.state_dicts import tensors_in

HARMLESS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
)
PLAUSIBLE = re.compile(r"[A-Za-z_][\w.]*")
LARGEST_PROGRAM = 64 << 20  # bytes of pickle opcodes that are read to list the names they use
SECONDS = 300  # that a child may take


def globals_in(path: Path) -> tuple[str, ...]:
    """Dotted names that the pickles in the file would import, sorted; nothing is imported or called."""
    names: set[str] = set()
    for program in _programs(path):
        _collect(program, names)
    return tuple(sorted(name for name in names if PLAUSIBLE.fullmatch(name)))


def dangerous(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those names that are not part of storing plain tensors."""
    return tuple(name for name in names if not name.startswith(HARMLESS) and not _is_storage(name))


def convert_in_child(path: Path) -> tuple[Path, str]:
    """Run the file in a child process that saves its tensors; returns a temporary safetensors file and how it was made.

    The child has no network where the system allows, no environment of ours, and limits on time, memory and file size.

    Raises:
        TargetError: The child failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="mi-audit-"))
    output = folder / "weights.safetensors"
    jail = ["unshare", "--map-root-user", "--net"] if _can_unshare() else []
    command = [*jail, sys.executable, "-m", "mi_audit.store.pickles", str(path.resolve()), str(output)]
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT") if name in os.environ}
    paths = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    try:
        done = subprocess.run(
            command, env={**kept, "PYTHONPATH": paths, "HOME": str(folder), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise TargetError(
            f"expected {path} to load within {SECONDS} s, got no end; export it as safetensors"
        ) from error
    if done.returncode or not output.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TargetError(f"expected {path} to hold a network or its tensors, got '{reason}'; export it as safetensors")
    return output, "child process without network" if jail else "child process"


def main(source: Path, output: Path) -> None:
    """The child: load `source`, however unsafe, and write its tensors to `output`."""
    _limit(source.stat().st_size)
    loaded = torch.jit.load(source, map_location="cpu") if is_torchscript(source) else _load_anything(source)
    content = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
    tensors, _wrappers = tensors_in(content, source)
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, output)


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip that holds a TorchScript program."""
    return any("/code/" in name or name.endswith("/constants.pkl") for name in zip_names(path))


def zip_names(path: Path) -> tuple[str, ...]:
    """Names of the members, empty when the file is no zip."""
    if not zipfile.is_zipfile(path):
        return ()
    with zipfile.ZipFile(path) as archive:
        return tuple(archive.namelist())


def _load_anything(source: Path) -> object:
    if any(name.endswith(("/serialized_exported_program.json", "models/model.json")) for name in zip_names(source)):
        return torch.export.load(source).state_dict
    return torch.load(source, map_location="cpu", weights_only=False)


def _limit(size: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * size + (64 << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_DATA, (8 * size + (4 << 30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def _can_unshare() -> bool:
    tool = shutil.which("unshare")
    if tool is None:
        return False
    return subprocess.run([tool, "--map-root-user", "--net", "true"], capture_output=True, check=False).returncode == 0


def _programs(path: Path) -> Iterator[BytesIO | BufferedReader]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as member:
                        yield BytesIO(member.read(LARGEST_PROGRAM))
    else:
        with path.open("rb") as file:
            yield file


def _collect(program: BytesIO | BufferedReader, names: set[str]) -> None:
    """Add the imports of all pickles that follow one another in a stream, as in torch files before version 1.6."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        while program.tell() < LARGEST_PROGRAM:
            for code, argument, _position in pickletools.genops(program):
                if code.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif code.name == "MEMOIZE" and strings:
                    memo[len(memo)] = strings[-1]
                elif code.name in ("BINPUT", "LONG_BINPUT", "PUT") and strings:
                    memo[int(argument or 0)] = strings[-1]
                elif code.name in ("BINGET", "LONG_BINGET", "GET"):
                    strings.append(memo.get(int(argument or 0), "?"))
                elif isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, IndexError):  # the raw bytes of the tensors follow the last pickle
        return


def _is_storage(name: str) -> bool:
    return name.startswith("torch.") and name.endswith("Storage")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
