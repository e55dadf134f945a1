"""YAML as people write it by hand: the environment's values put in, a field named twice refused."""

from __future__ import annotations

import os
import re
from typing import Any

import yaml
from yaml.composer import ComposerError


class _Loader(yaml.SafeLoader):
    """YAML itself keeps the last of two equal keys, and so silently loses the first one's block."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ComposerError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return node


def parsed(text: str) -> Any:
    """The value of a YAML text, ``${NAME:-default}`` replaced by the environment's, or the default.

    Raises:
        yaml.YAMLError: it is not YAML, or a mapping has a key twice; says the line.
    """
    # A loader of its own, as safe as SafeLoader: it makes no objects.
    return yaml.load(_with_environment(text), Loader=_Loader)  # noqa: S506


def _with_environment(text: str) -> str:
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: os.environ.get(found[1]) or found[2], text)
