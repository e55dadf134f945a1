"""``alkd llm serve``: the simulated chat-completions endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The simulated chat-completions endpoint."""


@app.command("serve")
def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = a free one.")] = 0,
    bill: Annotated[
        Path | None, typer.Option(help="File that keeps the bill, one JSON line an answer.")
    ] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="End when standard input ends.")
    ] = False,
    noise: Annotated[float, typer.Option(min=0, help="Noise on scores (evidence is ~1).")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise and of the faults.")] = 1,
    input_usd_per_million: Annotated[
        float, typer.Option(min=0, help="Price of a million prompt tokens.")
    ] = 0.15,
    output_usd_per_million: Annotated[
        float, typer.Option(min=0, help="Price of a million completion tokens.")
    ] = 0.6,
    latency_seconds: Annotated[
        float, typer.Option("--latency", "--latency-seconds", min=0, help="Wait before an answer.")
    ] = 0.0,
    jitter_seconds: Annotated[
        float, typer.Option("--jitter", "--jitter-seconds", min=0, help="Longest further wait.")
    ] = 0.0,
    slow_share: Annotated[float, typer.Option(min=0, max=1, help="Slow answers.")] = 0.0,
    slow_seconds: Annotated[float, typer.Option(min=0, help="Further wait of those.")] = 5.0,
    rate_limited_share: Annotated[
        float, typer.Option(min=0, max=1, help="Refused with 429 and Retry-After.")
    ] = 0.0,
    retry_after_seconds: Annotated[float, typer.Option(min=0, help="Retry-After of those.")] = 1.0,
    server_error_share: Annotated[
        float, typer.Option(min=0, max=1, help="Failed with 500, not billed.")
    ] = 0.0,
    drop_before_share: Annotated[
        float, typer.Option(min=0, max=1, help="Connections dropped before generating.")
    ] = 0.0,
    drop_after_share: Annotated[
        float, typer.Option(min=0, max=1, help="Connections dropped after generating; billed.")
    ] = 0.0,
    truncated_share: Annotated[
        float, typer.Option(min=0, max=1, help="Rankings whose JSON breaks off.")
    ] = 0.0,
    prose_share: Annotated[
        float, typer.Option(min=0, max=1, help="Rankings with prose around the JSON.")
    ] = 0.0,
    as_titles_share: Annotated[
        float, typer.Option(min=0, max=1, help="Rankings of titles instead of numbers.")
    ] = 0.0,
    repeated_share: Annotated[
        float, typer.Option(min=0, max=1, help="Rankings that name candidates twice.")
    ] = 0.0,
    too_many_share: Annotated[
        float, typer.Option(min=0, max=1, help="Rankings longer than asked for.")
    ] = 0.0,
    out_of_range_share: Annotated[
        float, typer.Option(min=0, max=1, help="Rankings with numbers that no candidate has.")
    ] = 0.0,
    ignore_max_tokens_share: Annotated[
        float, typer.Option(min=0, max=1, help="Answers beyond the output limit; billed in full.")
    ] = 0.0,
    json_schema: Annotated[
        bool, typer.Option(help="Accept response_format json_schema, or refuse it with 400.")
    ] = True,
    requests_per_minute: Annotated[
        int | None,
        typer.Option("--rpm", "--requests-per-minute", min=1, help="More are refused with 429."),
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            "--tpm",
            "--tokens-per-minute",
            min=1,
            help="More are refused with 429; a request's prompt and coming answer count.",
        ),
    ] = None,
    quota_requests: Annotated[
        int | None,
        typer.Option(min=0, help="Billed answers until 429 insufficient_quota."),
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the key to demand.")
    ] = "",
    batches: Annotated[
        bool, typer.Option(help="Have /v1/files and /v1/batches, or answer 404.")
    ] = True,
    batch_price_share: Annotated[
        float, typer.Option(min=0, max=1, help="Price of a batch's line, of the live price.")
    ] = 0.5,
    batch_seconds: Annotated[
        float, typer.Option(min=0, help="How long a batch takes; answers are spread over it.")
    ] = 0.0,
    batch_expire_after_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="A batch expires then, with what it has; else in 24 hours."),
    ] = None,
    batch_lines_limit: Annotated[
        int, typer.Option(min=1, help="A batch of more lines fails.")
    ] = 50_000,
    batch_bytes_limit: Annotated[
        int, typer.Option(min=1, help="A batch whose file has more bytes fails.")
    ] = 200_000_000,
    batch_line_error_share: Annotated[
        float, typer.Option(min=0, max=1, help="Lines of batches that fail with 500, not billed.")
    ] = 0.0,
    batch_line_refused_share: Annotated[
        float, typer.Option(min=0, max=1, help="Lines of batches refused with 400, not billed.")
    ] = 0.0,
    batch_fail_share: Annotated[
        float, typer.Option(min=0, max=1, help="Batches that fail as a whole, not billed.")
    ] = 0.0,
    batch_drop_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Batches created though the connection drops first."),
    ] = 0.0,
) -> None:
    """Serves a simulated LLM that knows what titles say.

    /v1/chat/completions, /v1/models, /v1/files, /v1/batches; /bill, /bill/log, /admissions.
    The first line printed tells the address. Ends on SIGTERM or Ctrl-C. Shares are probabilities.
    """
    from alkd_ray.llm_teachers import _server
    from alkd_ray.llm_teachers._behaviour import Behaviour

    given = {name: context.params[name] for name in Behaviour.model_fields}
    _server.run(
        Behaviour(**given),
        host=host,
        port=port,
        bill_file=bill,
        until_stdin_closes=until_stdin_closes,
    )
