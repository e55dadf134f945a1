"""How the simulated endpoint behaves: how well it reads, what it charges, how it misbehaves."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from alkd_ray.config import canonical_hash
from alkd_ray.registry import PluginConfig

MODEL = "simulated-title-reader"

# What changes the text of an answer; the others change only whether and when it comes.
_SHAPING = (
    "noise",
    "seed",
    "truncated_share",
    "prose_share",
    "as_titles_share",
    "repeated_share",
    "too_many_share",
    "out_of_range_share",
    "ignore_max_tokens_share",
)


def _share(description: str) -> Any:
    return Field(0.0, ge=0, le=1, description=description)


class Behaviour(PluginConfig):
    """Settings of the simulated endpoint. A share is a probability per request.

    Faults are drawn from the seed, the request and how often that request came before, so that
    they do not depend on the order of other requests, and a retry may succeed.
    """

    noise: float = Field(
        0.5, ge=0, description="standard deviation of the noise on scores; evidence is of order 1"
    )
    seed: int = Field(1, ge=0, description="of the noise and of the faults")
    input_usd_per_million: float = Field(0.15, ge=0, description="price of a million prompt tokens")
    output_usd_per_million: float = Field(0.6, ge=0, description="the same, completion tokens")
    latency_seconds: float = Field(0.0, ge=0, description="wait before each answer")
    jitter_seconds: float = Field(0.0, ge=0, description="longest further wait, drawn uniformly")
    slow_share: float = _share("answers that take slow_seconds longer")
    slow_seconds: float = Field(5.0, ge=0, description="further wait of a slow answer")
    rate_limited_share: float = _share("requests refused with 429 and Retry-After")
    retry_after_seconds: float = Field(1.0, ge=0, description="Retry-After of those")
    server_error_share: float = _share("requests that fail with 500, not billed")
    drop_before_share: float = _share("connections dropped before generating, not billed")
    drop_after_share: float = _share("connections dropped after generating, billed")
    truncated_share: float = _share("rankings whose JSON breaks off")
    prose_share: float = _share("rankings with prose around the JSON")
    as_titles_share: float = _share("rankings that give titles instead of numbers")
    repeated_share: float = _share("rankings that name candidates twice")
    too_many_share: float = _share("rankings of all candidates instead of as many as asked for")
    out_of_range_share: float = _share("rankings with numbers that no candidate has")
    ignore_max_tokens_share: float = _share("answers longer than the output limit, billed in full")
    json_schema: bool = Field(
        True, description="accept response_format json_schema; else 400, as older servers do"
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="more within 60 seconds are refused with 429 and Retry-After"
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="more within 60 seconds are refused with 429 and Retry-After; a request counts "
        "when it is admitted, with its prompt's tokens and those its answer will have",
    )
    quota_requests: int | None = Field(
        None, ge=0, description="after so many billed answers: 429 insufficient_quota"
    )
    api_key_env: str = Field(
        "", description="environment variable with the key to demand; empty = no key"
    )
    batches: bool = Field(
        True, description="have /v1/files and /v1/batches; else 404, as servers without them"
    )
    batch_price_share: float = Field(
        0.5, ge=0, le=1, description="price of a batch's line, as a share of the live price"
    )
    batch_seconds: float = Field(
        0.0,
        ge=0,
        description="how long a batch takes: the first and the last 5% validating and finalizing, "
        "its answers generated evenly in between; later where generating them takes longer",
    )
    batch_expire_after_seconds: float | None = Field(
        None, ge=0, description="a batch expires then, with what was generated; null = in 24 hours"
    )
    batch_lines_limit: int = Field(50_000, ge=1, description="a batch of more lines fails")
    batch_bytes_limit: int = Field(
        200_000_000, ge=1, description="a batch whose file has more bytes fails"
    )
    batch_line_error_share: float = _share("lines of batches that fail with 500, not billed")
    batch_line_refused_share: float = _share("lines of batches refused with 400, not billed")
    batch_fail_share: float = _share(
        "batches that fail as a whole, not billed; drawn from the file's content and how often it "
        "was submitted"
    )
    batch_drop_share: float = _share(
        "batches that are created although the connection drops before the answer"
    )


def identity_of(behaviour: Behaviour) -> str:
    """A name that changes with all that shapes answers, and with nothing else."""
    shaping = {name: getattr(behaviour, name) for name in _SHAPING}
    return f"simulated:{canonical_hash({'model': MODEL, **shaping})}"
