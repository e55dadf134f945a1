"""How many threads torch uses."""

from __future__ import annotations

import os


def one_thread() -> None:
    """One torch thread, unless ``OMP_NUM_THREADS`` says otherwise.

    Models this small gain little from more, sums come out the same whatever the machine, and
    threads that wait for each other on a busy machine make training several times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)
