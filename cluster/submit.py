"""Runs ``alkd`` on the head of a cluster, with that cluster's Ray.

    ray submit cluster/local.yaml cluster/submit.py -- run quickstart

What follows ``--`` is what ``alkd`` would be told on one machine; files are the head's. Ray says
these words to the head's shell as they are, so quote what a shell would take apart twice. There is
a terminal, so ``alkd`` asks before it pays; ``--yes`` answers.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Becomes ``alkd``: its output, its signals and its exit status are those of the submission."""
    os.environ.setdefault("RAY_ADDRESS", "auto")
    os.execv(sys.executable, [sys.executable, "-m", "alkd_ray", *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
