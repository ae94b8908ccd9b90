"""Random numbers of a training run, so that a resumed run draws what an uninterrupted one would have drawn."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream(seed: int, *position: object) -> torch.Generator:
    """A generator on the CPU whose numbers depend on the seed and the position in the run, and on nothing else."""
    return torch.Generator().manual_seed(_hash(seed, *position))


@contextmanager
def seeded(device: str, seed: int, *position: object) -> Iterator[None]:
    """Seed the global generators, which weight initialisation and dropout draw from; they are put back on leaving."""
    where = torch.device(device)
    devices = [torch.cuda.current_device() if where.index is None else where.index] if where.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(_hash(seed, *position))
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(_hash(seed, *position))
        yield


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
