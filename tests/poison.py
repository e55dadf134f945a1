"""A distillation method that ends its process, as running out of memory would."""

from __future__ import annotations

import os
import signal
from typing import Any

from alkd_ray.registry import PluginConfig


class Poison:
    """Kills the process that it is asked in; made up for tests."""

    needs_rankings = False

    class Config(PluginConfig):
        """No options."""

    def distill(self, *_: Any) -> Any:
        """Never returns."""
        os.kill(os.getpid(), signal.SIGKILL)
