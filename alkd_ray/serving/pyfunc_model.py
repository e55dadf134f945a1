"""A student as an MLflow ``pyfunc`` model: sessions of source ids in, top-k lists out.

MLflow loads it by the name of this module and a copy of the exported folder, so nothing is pickled.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alkd_ray import __version__
from alkd_ray.errors import InputError
from alkd_ray.serving.recommend import Student, load_student

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model, ModelSignature

DEFAULT_K = 10
# What recommending imports; named, so that MLflow need not run the model to find out.
REQUIRED_PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors")


class PyfuncStudent:
    """What ``mlflow.pyfunc.load_model`` wraps; see :meth:`predict`."""

    def __init__(self, student: Student) -> None:
        self.student = student

    def predict(
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """The top-k lists of sessions.

        Args:
            model_input: a column ``session``; each value is a list of source ids, oldest first, or
                a JSON text of such a list (for clients whose tables hold no lists). Numbers are
                read as texts.
            params: ``k``, the number of items wanted, by default 10.

        Returns:
            One row a session, with the columns ``items`` (source ids, best first), ``scores`` and
            ``titles`` (aligned with them), ``unknown`` (ids that were ignored) and ``problem``
            (why there are no items, "" normally).

        Raises:
            InputError: a session is not a list of ids, or k is out of bounds.
        """
        import pandas as pd

        sessions = [_ids(value, row) for row, value in enumerate(model_input["session"])]
        answers = self.student.recommend(sessions, int((params or {}).get("k", DEFAULT_K)))
        return pd.DataFrame(
            {
                "items": [[item.source_id for item in answer.items] for answer in answers],
                "scores": [[item.score for item in answer.items] for answer in answers],
                "titles": [[item.title for item in answer.items] for answer in answers],
                "unknown": [list(answer.unknown) for answer in answers],
                "problem": [answer.problem for answer in answers],
            }
        )


def save(exported: Path, folder: Path, description: Model) -> None:
    """Writes an MLflow model to ``folder``, on this machine alone.

    Args:
        exported: what :func:`alkd_ray.serving.export.export` wrote; it is copied.
        folder: where to; must not be there.
        description: MLflow's description, with the ids it shall bear; the rest is filled in.
    """
    import mlflow.pyfunc
    import pandas as pd

    student = load_student(exported)
    first = [str(source) for source in student.catalogue.source_ids[:2]]
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=__name__,
        data_path=str(exported),
        mlflow_model=description,
        signature=signature(),
        input_example=pd.DataFrame({"session": [first]}),
        pip_requirements=[
            f"alkd_ray=={__version__}",
            *(f"{name}=={version(name)}" for name in REQUIRED_PACKAGES),
        ],
    )


def signature() -> ModelSignature:
    """The signature that MLflow enforces.

    The input's type is "any", because a session may come as a list or as a JSON text;
    :meth:`PyfuncStudent.predict` checks it.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    texts = Array(DataType.string)
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "session")]),
        outputs=Schema(
            [
                ColSpec(texts, "items"),
                ColSpec(Array(DataType.double), "scores"),
                ColSpec(texts, "titles"),
                ColSpec(texts, "unknown"),
                ColSpec(DataType.string, "problem"),
            ]
        ),
        params=ParamSchema([ParamSpec("k", DataType.long, DEFAULT_K)]),
    )


def _load_pyfunc(path: str) -> PyfuncStudent:
    """The entry point that MLflow calls, with the copy of the exported folder."""
    return PyfuncStudent(load_student(path))


def _ids(value: Any, row: int) -> list[str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple) or any(isinstance(i, list | dict) for i in value):
        raise InputError(
            f"row {row}, column session: is not a list of item ids; "
            'give a list or its JSON text, e.g. ["17", "4"]'
        )
    return [str(source) for source in value]
