"""Which classes are attacked."""

import hashlib
import random
import re

from mi_audit.core.errors import ConfigError

GRAMMAR = "`all`, a range `0-4`, a list `0,3,7-9`, or `random:50`"


def select_classes(spec: str, num_classes: int, seed_text: str) -> tuple[int, ...]:
    """Labels that `spec` names, in ascending order.

    `random:N` draws without replacement from a hash of `seed_text`, so that nobody picks the people who come out well.

    Raises:
        ConfigError: The spec is not in the grammar, or names a class that does not exist.
    """
    spec = spec.strip()
    if spec == "all":
        return tuple(range(num_classes))
    if drawn := re.fullmatch(r"random:(\d+)", spec):
        count = int(drawn[1])
        if not 1 <= count <= num_classes:
            raise ConfigError(f"expected random:N with 1 <= N <= {num_classes} classes, got {spec!r}; lower N")
        seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8], "big")
        return tuple(sorted(random.Random(seed).sample(range(num_classes), count)))
    chosen: set[int] = set()
    for part in spec.split(","):
        bounds = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if bounds is None:
            raise ConfigError(f"expected --classes as {GRAMMAR}, got {spec!r}; correct {part!r}")
        first, last = int(bounds[1]), int(bounds[2] or bounds[1])
        if not first <= last < num_classes:
            raise ConfigError(f"expected classes from 0 to {num_classes - 1}, got {part.strip()!r}; choose others")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))
