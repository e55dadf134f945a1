"""Everything a run can be told, validated before any work.

Values come from defaults < preset < file < ``key=value``. Unknown fields are errors that list the
known ones. A plug-in's own options stand under ``options`` and are validated by the plug-in.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from alkd_ray import registry, yaml_text
from alkd_ray.errors import InputError
from alkd_ray.storage_url import checked_storage


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(_Part):
    """Which sessions."""

    source: str = "synthetic"
    options: dict[str, Any] = Field(default_factory=dict)
    window: int = Field(
        default=10, ge=1, description="input items a recommender sees, the last ones"
    )


class TrainingConfig(_Part):
    """How a backbone is fitted."""

    loss: Literal["pairwise", "sampled_bce", "softmax"] = Field(
        default="pairwise",
        description="in-batch pairwise BPR, BCE with one sampled negative, full softmax",
    )
    examples: Literal["last", "prefixes"] = Field(
        default="last", description="one example a session, or every prefix of it"
    )
    soft_labels: list[str] = Field(
        default_factory=list,
        description="plain recommenders whose mixed top list gives soft labels (softmax only)",
    )
    soft_weight: float = Field(
        default=0.7, ge=0, le=1, description="share of the soft labels in the loss"
    )
    batch_size: int = Field(default=1024, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(default=0.0, ge=0)
    max_steps: int = Field(default=10_000, ge=1)
    validate_every: int = Field(default=20, ge=1, description="steps between two validations")
    patience: int = Field(default=10, ge=1, description="validations without gain before stopping")
    metric: str = Field(default="recall@25", pattern=r"^(recall|ndcg|mrr)@[1-9]\d*$")
    device: Literal["auto", "cpu", "cuda"] = "auto"


class ModelConfig(_Part):
    """A backbone and its training."""

    backbone: str = "fpmc"
    dim: int = Field(default=10, ge=1, le=65_536, description="size of the embeddings")
    options: dict[str, Any] = Field(default_factory=dict)
    training: TrainingConfig = TrainingConfig()


class CandidatesConfig(_Part):
    """Which items the LLM ranks."""

    size: int = Field(default=50, ge=2)
    force_target: bool = Field(default=True, description="put the training target in, as published")
    order: Literal["shuffled", "teacher"] = Field(
        default="shuffled",
        description="order in which the LLM sees them; in the teacher's order (as published) a "
        "forced target always stands last, and an LLM that repeats the list repeats the teacher",
    )


class HintsConfig(_Part):
    """Behaviour patterns that the LLM writes down first, from the teacher's predictions."""

    enabled: bool = True
    artifact: str = Field(
        default="",
        description="hints to use instead of asking for them: a key that alkd annotate hints "
        "lists, or a file (a hints.json, or plain text)",
    )
    sessions: int = Field(default=20, ge=1, description="training sessions shown")
    top: int = Field(default=20, ge=1, description="the teacher's top items shown for each")


class DifficultyConfig(_Part):
    """How hard a session is for the teacher."""

    kind: Literal["consistency", "overlap"] = "consistency"
    direction: Literal["hardest_first", "easiest_first"] = Field(
        default="hardest_first",
        description="which end has rank 1 (the published code: the hardest)",
    )
    engine: Literal["auto", "ray", "local"] = Field(
        default="ray", description="Ray Data over shards; local = one process; auto = by size"
    )
    shards: int = Field(default=4, ge=1)


class SelectionConfig(_Part):
    """Which sessions are paid for."""

    strategy: str = "alkdrec-exact"
    options: dict[str, Any] = Field(default_factory=dict)
    budget: int = Field(default=500, ge=1, description="|B|, sessions to select")
    recorded_only: bool = Field(
        default=False,
        description="select among sessions with a recorded ranking alone (teacher replay)",
    )


class LLMConfig(_Part):
    """Who ranks."""

    teacher: str = "simulated"
    options: dict[str, Any] = Field(default_factory=dict)


class AnnotationConfig(_Part):
    """How rankings are bought."""

    wanted: int = Field(default=25, ge=1, description="items in a ranking")
    mode: Literal["live", "batch"] = Field(
        default="live",
        description="one request a question, or files of them for /v1/batches: cheaper, and ready "
        "within a day",
    )
    engine: Literal["ray", "local"] = "ray"
    actors: int = Field(default=1, ge=1)
    in_flight: int = Field(default=64, ge=1, description="requests in flight per actor")
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="the endpoint's limit; all actors together keep below it"
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="the same, prompt and completion tokens together"
    )
    batch_size: int = Field(
        default=5_000, ge=1, le=50_000, description="most requests in one batch"
    )
    batch_poll_seconds: float = Field(
        default=30.0, gt=0, description="wait between two looks at the batches under way"
    )
    tries: int = Field(
        default=6,
        ge=1,
        description="sendings of one request that may end in an error before it fails",
    )
    max_output_tokens: int | None = Field(
        default=None,
        ge=1,
        description="limit of one answer, held at its full price; none = what a ranking takes; a "
        "model that thinks first needs more, for hints too",
    )
    partial: bool = Field(default=False, description="go on when the cap cannot cover all requests")


class BudgetConfig(_Part):
    """The hard cap; None = no limit of that kind."""

    name: str = Field(
        default="", description="runs of one budget share its cap; default: the run's name"
    )
    dollars: float | None = Field(default=1.0, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    requests: int | None = Field(default=None, ge=0)


class DistillationConfig(_Part):
    """How rankings reach the student."""

    method: str = "alkdrec"
    options: dict[str, Any] = Field(default_factory=dict)
    training: TrainingConfig = TrainingConfig(patience=20, metric="recall@50")


class EvaluationConfig(_Part):
    """What is reported."""

    cutoffs: list[int] = Field(default_factory=lambda: [5, 10])
    baselines: list[str] = Field(
        default_factory=lambda: ["popularity", "item-knn", "sequential-rules", "vsknn"]
    )
    resamples: int = Field(default=2000, ge=100, description="bootstrap resamples of an interval")

    @field_validator("cutoffs")
    @classmethod
    def _positive(cls, value: list[int]) -> list[int]:
        if not value or min(value) < 1 or len(set(value)) != len(value):
            raise ValueError("cutoffs must be distinct positive whole numbers")
        return value


class TrackingConfig(_Part):
    """MLflow."""

    enabled: bool = True
    experiment: str = "alkd_ray"
    trace_requests: bool = Field(
        default=False,
        description="log each answer with its question as an MLflow trace, after the pass",
    )


class RunConfig(_Part):
    """One run: sessions in, distilled students and a report out."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    preset: Literal["paper", "strong"] = "paper"
    seeds: list[int] = Field(default_factory=lambda: [1], min_length=1)
    data: DataConfig = DataConfig()
    teacher: ModelConfig = ModelConfig(dim=100, training=TrainingConfig(patience=20))
    student: ModelConfig = ModelConfig(dim=10)
    candidates: CandidatesConfig = CandidatesConfig()
    hints: HintsConfig = HintsConfig()
    difficulty: DifficultyConfig = DifficultyConfig()
    selection: SelectionConfig = SelectionConfig()
    llm: LLMConfig = LLMConfig()
    annotation: AnnotationConfig = AnnotationConfig()
    budget: BudgetConfig = BudgetConfig()
    distillation: DistillationConfig = DistillationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    books: str = Field(
        default="",
        description="postgresql://user@host/database with ledger and answers, shared by several "
        "drivers; default: what ALKD_BOOKS names, else a file below the run root",
    )

    storage: str = Field(
        default="",
        description="a folder (absolute path, file://) or s3://bucket/prefix, gs://bucket/prefix "
        "that all nodes reach, where outputs are kept too; default: what ALKD_STORAGE names, else "
        "the run root alone",
    )

    @field_validator("storage")
    @classmethod
    def _a_place(cls, value: str) -> str:
        return checked_storage(value) if value else value

    @field_validator("books")
    @classmethod
    def _without_password(cls, value: str) -> str:
        user, at, _ = value.partition("://")[2].rpartition("@")
        # Not a ValueError: the message of those repeats the value.
        if (at and ":" in user) or "password=" in value.lower():
            raise InputError(
                "books: a config holds no password; give it in PGPASSWORD, in a file (~/.pgpass, "
                "or PGPASSFILE), or the whole URL in ALKD_BOOKS"
            )
        if value and not value.startswith(("postgresql://", "postgres://")):
            raise InputError("books: is not of the form postgresql://user@host:port/database")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value) or min(value) < 0 or max(value) >= 2**63:
            raise ValueError("seeds must be distinct, not negative, and below 2^63")
        return value


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The config of ``path`` with ``key=value`` overrides, validated with its plug-ins' options.

    Args:
        path: a YAML file, or the name of one that ships (``quickstart``).
        overrides: dotted fields, e.g. ``selection.budget=300``; values are read as YAML.

    Raises:
        InputError: naming the file, the field and what is allowed.
    """
    return make(overridden(read(path), overrides or []), where=str(_locate(Path(path))))


def read(path: str | Path) -> dict[str, Any]:
    """The fields of a config file as they stand there, with the environment's values put in.

    Raises:
        InputError: there is no such file, or it is no mapping in YAML.
    """
    file = _locate(Path(path))
    try:
        given = yaml_text.parsed(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read as YAML: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"{file}: a config is a mapping of fields, not a {type(given).__name__}")
    return given


def overridden(given: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of ``given`` with ``key=value`` texts applied, their values read as YAML.

    Raises:
        InputError: a text is not of that form.
    """
    given = copy.deepcopy(given)
    for text in overrides:
        dotted, equals, raw = text.partition("=")
        if not equals or not dotted:
            raise InputError(
                f"override {text!r} is not of the form key=value, e.g. selection.budget=300"
            )
        try:
            place(given, dotted, yaml.safe_load(raw))
        except yaml.YAMLError as error:
            raise InputError(f"override {text!r}: {raw!r} is not a YAML value") from error
    return given


def place(given: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets a dotted field of a mapping.

    Raises:
        InputError: a part of its name holds a value, not fields.
    """
    *parents, last = dotted.split(".")
    for parent in parents:
        given = given.setdefault(parent, {})
        if not isinstance(given, dict):
            raise InputError(f"{dotted}={value}: {parent!r} holds a value, not fields")
    given[last] = value


def make(given: dict[str, Any], where: str = "config") -> RunConfig:
    """A validated config from a plain mapping (see :func:`load`)."""
    preset = given.get("preset", "paper")
    base = preset_values(preset) if preset in ("paper", "strong") else {}
    by_backbone = base.pop("backbone_options", {})
    merged = merge(base, given)
    for role in {"teacher", "student"} & set(merged):
        merged[role] = _with_options(merged[role], by_backbone)
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise InputError(f"{where}: {registry.explain(error, '', RunConfig)}") from error
    check_plugins(config, where)
    return config


def check_plugins(config: RunConfig, where: str) -> None:
    """Validates every plug-in's options, so that a bad one fails before any work."""
    for room, name, options, field in (
        ("sources", config.data.source, config.data.options, "data"),
        ("recommenders", config.teacher.backbone, config.teacher.options, "teacher"),
        ("recommenders", config.student.backbone, config.student.options, "student"),
        ("strategies", config.selection.strategy, config.selection.options, "selection"),
        ("llm_teachers", config.llm.teacher, config.llm.options, "llm"),
        ("distillation", config.distillation.method, config.distillation.options, "distillation"),
    ):
        try:
            registry.options(room, name, options, f"{field}.options")
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    _check_recommenders(config, where)
    if config.annotation.wanted > config.candidates.size:
        raise InputError(
            f"{where}: annotation.wanted is {config.annotation.wanted}, more than the "
            f"{config.candidates.size} candidates of candidates.size"
        )


def _check_recommenders(config: RunConfig, where: str) -> None:
    """Refuses a plain recommender where embeddings are needed, and the other way round."""
    plain = [("evaluation.baselines", name) for name in config.evaluation.baselines]
    for role, model in (("teacher", config.teacher), ("student", config.student)):
        if not hasattr(registry.find("recommenders", model.backbone), "encode"):
            raise InputError(
                f"{where}: {role}.backbone: {model.backbone!r} only counts; what is trained here "
                "has embeddings: fpmc, stamp, attmix or package.module:Class"
            )
        plain += [(f"{role}.training.soft_labels", name) for name in model.training.soft_labels]
    for field, name in plain:
        if not hasattr(registry.find("recommenders", name), "fit"):
            raise InputError(
                f"{where}: {field}: {name!r} is not a plain recommender; name ones that count, "
                "such as sequential-rules or item-knn"
            )
    if config.distillation.training.soft_labels:
        raise InputError(
            f"{where}: distillation.training.soft_labels must be empty: a distillation has labels "
            "of its own"
        )


def _with_options(model: Any, by_backbone: dict[str, Any]) -> Any:
    """A model's part of a config, with the preset's options of its backbone below its own."""
    if not isinstance(model, dict) or not isinstance(model.get("options", {}), dict):
        return model  # validation says what is wrong with it
    preset = by_backbone.get(str(model.get("backbone", "fpmc")), {})
    return {**model, "options": merge(preset, model.get("options", {}))}


def preset_values(name: str) -> dict[str, Any]:
    """The preset's mapping, from the package's ``presets/<name>.yaml``.

    Beside the fields of :class:`RunConfig` it may hold ``backbone_options``: backbone -> options of
    the teacher and the student, where they are of that backbone.
    """
    text = importlib.resources.files("alkd_ray").joinpath(f"presets/{name}.yaml").read_text("utf-8")
    return yaml.safe_load(text) or {}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``, mapping by mapping; lists and values replace."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def canonical_hash(value: Any, digits: int = 16) -> str:
    """SHA-256 (first ``digits`` hex digits) of a JSON-able value, keys sorted."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _locate(path: Path) -> Path:
    if path.is_file():
        return path
    shipped = Path(str(importlib.resources.files("alkd_ray"))) / "presets" / f"{path.stem}.yaml"
    if path.suffix == "" and path.name not in ("paper", "strong") and shipped.is_file():
        return shipped
    raise InputError(f"{path}: there is no such config file")
