"""The page of what annotating costs: one that needs nothing else, beside the numbers as CSV."""

from __future__ import annotations

from collections.abc import Mapping

from alkd_ray import __version__
from alkd_ray.evaluation.wording import Finding
from alkd_ray.report import page_environment
from alkd_ray.reproduction.efficiency import MODEL, Efficiency
from alkd_ray.reproduction.further import PRICED_FORM

PAGE = "efficiency.html"


def render(found: Mapping[str, Efficiency]) -> str:
    """The page of all datasets, by name: what is compared, every row, and its notes."""
    template = page_environment().get_template(PAGE)
    shown = template.render(
        found=found,
        headline=[_compared(dataset, one) for dataset, one in found.items()],
        notes=(),  # they stand below the table of the dataset that they are about
        model=MODEL,
        generated=f"alkd_ray {__version__}",
    )
    return shown + "\n"


def _compared(dataset: str, found: Efficiency) -> Finding:
    """The fewest sessions against all, with answers as this project asks for them."""
    rows = [row for row in found.rows if row.form == PRICED_FORM]
    few, every = rows[0], rows[-1]
    claim = (
        f"{dataset}: rankings of {few.sessions:,} sessions cost {few.dollars.expected:,.1f} USD, "
        f"of all {every.sessions:,} sessions {every.dollars.expected:,.1f} USD"
    )
    said = " and ".join(
        f"{row.dollars.low:,.1f} to {row.dollars.high:,.1f}" for row in (few, every)
    )
    if few.published and every.published:
        paper = f"{few.published.dollars:,.1f} and {every.published.dollars:,.1f}"
        said = f"{said}; the paper: {paper}"
    return Finding(claim, f"answers in {PRICED_FORM}, {said}")
