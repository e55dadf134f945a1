"""The tables and figures that can be made here: the sweeps behind each, and what it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from alkd_ray.errors import InputError

HETREC, GAMES = "hetrec2011-ml", "amazon-games"
TABLE_METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")

Contrast = Literal["columns", "rows", "student"]

_OF_ALL_TABLES = (
    "AttMix has the form of the paper's code, but for its dropout (which the files in "
    "tune_configs/attmix_dropout have, and no others) and layer normalisation; on "
    "HetRec it is pretrained with one sampled negative (the code's teacher: ten).",
    "All distillations, of all backbones, go on with the in-batch pairwise loss (DLLM2Rec with its "
    "own), Adam at .001 and the best validation recall@50, as the paper's text and its code for "
    "FPMC have it. The code for STAMP and AttMix looks at recall@15; that for AttMix has a rate of "
    ".0001, and on HetRec the loss of the pretraining.",
)


@dataclass(frozen=True, slots=True)
class Study:
    """A table or a figure of the paper.

    Attributes:
        name: as the command takes it.
        title: what it shows.
        claim: what the paper says of it.
        sweeps: dataset -> file of its sweep, without ``.yaml``.
        rows: the sweep's axis that is laid out in rows.
        columns: the axis laid out in columns; "" = there is one column.
        contrast: what is tested: the column ``main`` against every other one of its row, the row
            ``main`` against every other one of its column, or each student after distillation
            against itself before.
        main: the value, as text, of that axis.
        metrics: shown.
        roles: of the models shown beside the distilled students, once for each row.
        effects: whether the selected sessions are looked at afterwards.
        notes: what its reader has to know of how it was made.
    """

    name: str
    title: str
    claim: str
    sweeps: Mapping[str, str]
    rows: str
    columns: str
    contrast: Contrast
    main: str = ""
    metrics: tuple[str, ...] = TABLE_METRICS
    roles: tuple[str, ...] = ("student", "teacher")
    effects: bool = False
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Of its report: one dataset of several has its own."""
        everything = STUDIES[self.name].sweeps
        names = [self.name, *([] if self.sweeps == everything else self.sweeps)]
        return "-".join(names)

    def of(self, dataset: str | None) -> Study:
        """The same of one dataset alone; None = as it is.

        Raises:
            InputError: it has no such dataset.
        """
        if dataset is None:
            return self
        if dataset not in self.sweeps:
            raise InputError(
                f"{self.name} is not made of {dataset!r}; its datasets: {', '.join(self.sweeps)}"
            )
        return replace(self, sweeps={dataset: self.sweeps[dataset]})

    @property
    def is_table(self) -> bool:
        """Whether the paper prints numbers for it."""
        return self.name.startswith("table")


STUDIES = {
    study.name: study
    for study in (
        Study(
            "table1",
            "Table 1: the compared methods",
            "ALKDRec is above every compared distillation method in most cases, by 17.03% (FPMC), "
            "9.81% (STAMP) and 12.97% (AttMix) on average.",
            {HETREC: "table1", GAMES: "table1_games"},
            "backbone",
            "method",
            "columns",
            "ALKDRec",
            notes=(
                "All methods go on from the same teachers and students, but for DSL, which has no "
                "teacher and a student of 20 dimensions at density .5: the weights of one of 10.",
                "DLLM2Rec reads all recorded rankings, about two thirds (HetRec) and less than "
                "half (Games) of the training sessions; its text embeddings are off.",
                *_OF_ALL_TABLES,
                "The methods' weights are the best of three on the validation sessions of HetRec "
                "with FPMC (tune_configs/tuning.yaml); ALKDRec has the paper's settings.",
            ),
        ),
        Study(
            "table2",
            "Table 2: what selects the sessions",
            "ALKDRec is above TR everywhere, and above random, easiest, hardest and RAD-BC "
            "selection in most cases.",
            {HETREC: "table2", GAMES: "table2_games"},
            "backbone",
            "variant",
            "columns",
            "ALKDRec",
            metrics=("recall@10", "ndcg@10"),
            effects=True,
            notes=_OF_ALL_TABLES,
        ),
        Study(
            "figure2a",
            "Figure 2a: students of different dimensions",
            "Distillation improves the student whatever its dimension.",
            {HETREC: "figure2_dims"},
            "student.dim",
            "",
            "student",
            metrics=("recall@10", "ndcg@10"),
        ),
        Study(
            "figure2b",
            "Figure 2b: shares of correct answers",
            "ALKDRec is above RAD-BC at every share of correct answers.",
            {HETREC: "figure2_correction"},
            "selection.options.ratio",
            "selection.strategy",
            "columns",
            "alkdrec-paper",
            metrics=("recall@10", "ndcg@10"),
        ),
        Study(
            "figure3a",
            "Figure 3a: ratios of effective, similar and incorrect sessions",
            "The ratio 1 : 5 : 4 is best.",
            {HETREC: "figure3_ratios"},
            "selection.options.ratio",
            "selection.strategy",
            "rows",
            "[1, 5, 4]",
            metrics=("recall@10", "ndcg@10"),
        ),
        Study(
            "figure3b",
            "Figure 3b: how many sessions are asked",
            "More sessions help at first; beyond some number they harm. The paper settles on 500.",
            {HETREC: "figure3_budget"},
            "selection.budget",
            "selection.strategy",
            "rows",
            "500",
            metrics=("recall@10", "ndcg@10"),
        ),
    )
}
