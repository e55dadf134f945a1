"""The stage that has hints written, or takes named ones; kept by what they were made from."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alkd_ray import artifacts, buying, stages
from alkd_ray import sessions as windows_of
from alkd_ray.annotation import hints as hint_writer
from alkd_ray.annotation import worker
from alkd_ray.annotation.prompts import HINTS_VERSION
from alkd_ray.artifacts import StageOutput
from alkd_ray.buying import Before
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.seeds import numpy_stream
from alkd_ray.stages import Context
from alkd_ray.types import IntArray

NO_HINTS: dict[str, Any] = {
    "text": "",
    "key": "",
    "cost_microusd": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "prompt": "",
    "model": "",
}


def hints(
    context: Context,
    imported: StageOutput,
    teacher: StageOutput,
    seed: int,
    run_id: str,
    before: Before,
) -> StageOutput:
    """``hints.json``: behaviour patterns in the LLM's words, from the teacher's predictions."""
    config = context.config

    def make(folder: Path) -> None:
        before()
        examples = hint_examples(context, imported, teacher, seed)
        written = hint_writer.write_hints(examples, buying.job_of(context, imported, (), run_id))
        _write_hints({**asdict(written), "prompt": HINTS_VERSION, "model": _model(config)}, folder)

    settings = {
        "hints": config.hints.model_dump(),
        "llm": config.llm.model_dump() if config.hints.enabled else None,
        "window": config.data.window,
        "prompt": HINTS_VERSION,
    }
    if not wants_hints(config):
        named = named_hints(context)
        make = functools.partial(_write_hints, named)
        settings = {"hints": named if named["text"] else "none"}
    return context.produce(
        "hints",
        make,
        version=1,
        inputs={"dataset": imported.key, "teacher": teacher.key},
        settings=settings,
        seed=seed,
    )


def wants_hints(config: RunConfig) -> bool:
    """Whether the LLM is asked for hints; a recording cannot be, named ones are there."""
    wanted = config.hints.enabled and not config.hints.artifact
    return wanted and config.llm.teacher != "replay"


def named_hints(context: Context) -> dict[str, Any]:
    """The hints that ``hints.artifact`` names, as ``hints.json`` holds them; else none.

    It is the key of a hints output below the run root or in the storage, or a file: a
    ``hints.json``, or plain text. Using them costs nothing.

    Raises:
        InputError: there are no such hints.
    """
    name, root = context.config.hints.artifact, context.root
    if not context.config.hints.enabled or not name:
        return NO_HINTS
    is_key = "/" not in name and artifacts.is_there(root, "hints", name, context.storage)
    file = root / "hints" / name / "hints.json" if is_key else Path(name)
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"hints.artifact: {name} is neither the key of hints below {root} nor a file of text; "
            "alkd annotate hints lists the keys"
        ) from error
    if file.suffix == ".json":
        try:
            text = json.loads(text)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"hints.artifact: {file} is not a hints.json") from error
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"hints.artifact: {file} holds no text")
    return {**NO_HINTS, "text": text.strip()}


def hint_examples(
    context: Context, imported: StageOutput, teacher: StageOutput, seed: int
) -> list[tuple[IntArray, IntArray]]:
    """Items of some training sessions, and the teacher's top items of each."""
    from alkd_ray.evaluation.ranks import top_items
    from alkd_ray.training import checkpoint

    config = context.config
    train = windows_of.of_split(stages.load_dataset(imported).sessions, "train")
    rng = numpy_stream(seed, "hint sessions")
    count = min(config.hints.sessions, len(train))
    shown = windows_of.take(train, np.sort(rng.choice(len(train), count, replace=False)))
    model = checkpoint.load(teacher.folder / "checkpoint")
    tops = top_items(model, shown, config.data.window, config.hints.top)
    return [(shown.items_of(row), tops[row]) for row in range(count)]


def _write_hints(written: dict[str, Any], folder: Path) -> None:
    artifacts.write_json(folder / "hints.json", written)


def _model(config: RunConfig) -> str:
    return worker.teacher_of(config.llm).describe().model
