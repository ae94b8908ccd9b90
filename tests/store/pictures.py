"""Picture files made on the spot."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, mode: str = "RGB", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """Noise of the given mode; (width, height) as PIL has it."""
    width, height = size
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    rows = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, kind)
    return buffer.getvalue()


def image_folder(root: Path, classes: tuple[str, ...] = ("a", "b"), per_class: int = 4, mode: str = "RGB") -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for row in range(per_class):
            (root / name / f"{row:02}.png").write_bytes(png(100 * number + row, mode))
    return root


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target
