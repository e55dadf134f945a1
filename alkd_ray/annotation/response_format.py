"""The response format that an endpoint accepts, for live questions and batches alike."""

from __future__ import annotations

from typing import Any

from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._client import NotBilledError

# How endpoints refuse a response format; llama_cpp.server answers 500, and names the field.
FORMAT_STATUS = frozenset({400, 415, 422, 500, 501})
STRUCTURED_OUTPUT_ORDER = ("schema", "object", "json", "off")


class ResponseFormat:
    """Which response format the endpoint accepts, found out once by asking."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._is_open = endpoint.structured_output == "auto"
        self.mode = "schema" if self._is_open else endpoint.structured_output

    def completed(self, body: dict[str, Any], schema: dict[str, Any] | None) -> dict[str, Any]:
        """The request with its response format."""
        if schema is None or self.mode == "off":
            return body
        if self.mode == "json":
            return {**body, "response_format": {"type": "json_object"}}
        if self.mode == "object":
            return {**body, "response_format": {"type": "json_object", "schema": schema}}
        named = {"name": "ranking", "strict": True, "schema": schema}
        return {**body, "response_format": {"type": "json_schema", "json_schema": named}}

    def gives_way(self, asked_with: str, problem: NotBilledError) -> bool:
        """Whether the endpoint refused the format ``asked_with``, and there is a simpler one."""
        said = str(problem).lower()
        is_about_format = any(word in said for word in ("response_format", "schema", "json_object"))
        if not self._is_open or problem.status not in FORMAT_STATUS or not is_about_format:
            return False
        if asked_with == "off":
            return False
        if self.mode == asked_with:  # else another request has found that out already
            self.mode = STRUCTURED_OUTPUT_ORDER[STRUCTURED_OUTPUT_ORDER.index(asked_with) + 1]
        return True
