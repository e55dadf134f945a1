"""One seed fans out into named, independent streams.

No code of this project seeds a global generator: every random draw takes a generator from here,
named after what it is for, so that adding a draw in one place never shifts another's.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for ``purpose``, independent of those for other purposes.

    Args:
        seed: the run's seed.
        purpose: what the stream is for, from general to special, e.g. ``"selection", "rad-bc"``.
    """
    text = "\x1f".join([str(int(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator for ``purpose`` (see :func:`derive`)."""
    return np.random.default_rng(derive(seed, *purpose))


def torch_stream(seed: int, *purpose: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator for ``purpose`` (see :func:`derive`) on ``device``."""
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(derive(seed, *purpose))
    return generator


def hash_uniform(seed: int, ids: np.ndarray) -> np.ndarray:
    """A seeded hash of each id, ``[S]`` uint64: breaks ties the same way whatever the row order.

    This is the finaliser of splitmix64 (Steele et al., 2014) over ``id + seed * golden ratio``.
    """
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(derive(seed, "hash")) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
