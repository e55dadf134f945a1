"""Any endpoint that speaks OpenAI's chat completions: OpenAI, vLLM, llama.cpp, Ollama."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import Endpoint, StructuredOutput, is_openai
from alkd_ray.registry import PluginConfig


class OpenAIChat:
    """Chat completions at ``base_url``.

    The protocol is OpenAI's (``POST {base_url}/chat/completions``); its price is looked up by
    ``model`` unless ``rates`` gives it, and an unknown price is an error before anything is sent.
    """

    class Config(PluginConfig):
        """Options. The key itself never stands in a config."""

        base_url: str = Field(
            "https://api.openai.com/v1", description="address up to and including /v1"
        )
        model: str = Field(description="the model's name, as the endpoint knows it")
        api_key_env: str | None = Field(
            None,
            description="environment variable that holds the key; default: OPENAI_API_KEY at "
            "openai.com, none elsewhere",
        )
        api_key_file: str = Field("", description="file that holds the key, instead")
        rates: dict[str, float] | None = Field(
            None,
            description="input_usd_per_million, output_usd_per_million and, optionally, "
            "cached_input_usd_per_million and batch_{input,output}_usd_per_million; needed where "
            "the model's price is unknown (0 is a rate)",
        )
        temperature: float | None = Field(0.0, ge=0, description="null = leave it to the endpoint")
        timeout_seconds: float = Field(120.0, gt=0, description="longest wait for one answer")
        structured_output: StructuredOutput = Field(
            "auto", description="ask for a JSON schema, a JSON object or nothing; auto tries"
        )
        output_limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
            "max_tokens",
            description="the field that limits the output; OpenAI's reasoning models know only "
            "max_completion_tokens",
        )
        extra_body: dict[str, Any] = Field(
            default_factory=dict, description="further fields of each request, e.g. seed"
        )

        @field_validator("base_url")
        @classmethod
        def _address(cls, value: str) -> str:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ValueError("must be an http or https address, such as http://host:8000/v1")
            if parts.username or parts.password:
                raise ValueError("must not hold a password; name the key's variable in api_key_env")
            if parts.query:
                raise ValueError("must not hold a query; a key goes by api_key_env")
            return value.rstrip("/")

        @field_validator("api_key_env")
        @classmethod
        def _is_a_name(cls, value: str | None) -> str | None:
            if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
                raise ValueError("must be the name of an environment variable, not the key itself")
            return value

        @field_validator("extra_body")
        @classmethod
        def _free_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
            ours = {"model", "messages", "response_format", "stream", "n"} & set(value)
            ours |= {"max_tokens", "max_completion_tokens", "temperature"} & set(value)
            if ours:
                raise ValueError(
                    f"must not set {', '.join(sorted(ours))}; the platform does (temperature is an "
                    "option of its own)"
                )
            return value

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None,
        api_key_file: str,
        rates: Mapping[str, float] | None,
        temperature: float | None,
        timeout_seconds: float,
        structured_output: StructuredOutput,
        output_limit_field: Literal["max_tokens", "max_completion_tokens"],
        extra_body: Mapping[str, Any],
    ) -> None:
        if api_key_env is None:  # OpenAI's key is for nobody else
            api_key_env = "OPENAI_API_KEY" if is_openai(base_url) else ""
        self._endpoint = Endpoint(
            identity=base_url,
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            api_key_file=api_key_file,
            rates=rates,
            temperature=temperature,
            timeout_seconds=timeout_seconds,
            structured_output=structured_output,
            output_limit_field=output_limit_field,
            extra_body=extra_body,
        )

    def describe(self) -> Endpoint:
        """See :class:`alkd_ray.llm_teachers.ChatTeacher`."""
        return self._endpoint

    @contextmanager
    def endpoint(self) -> Iterator[Endpoint]:
        """See :class:`alkd_ray.llm_teachers.ChatTeacher`; nothing has to be started."""
        self.check()
        yield self._endpoint

    def check(self) -> None:
        """See :class:`alkd_ray.llm_teachers.ChatTeacher`; only OpenAI's own needs a key."""
        here = self._endpoint
        has_key = here.api_key_file or os.environ.get(here.api_key_env)
        if is_openai(here.base_url) and not has_key:
            raise InputError(
                f"llm.options.api_key_env: {here.base_url} needs a key, but the environment "
                f"variable {here.api_key_env!r} is not set; export it"
            )
