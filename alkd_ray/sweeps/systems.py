"""The rows of a sweep's tables of test metrics, and where each of their numbers comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alkd_ray.sweeps.comparing import ROLES, SettingRow, Tested

RUN_ROOT = "../../.."  # from a report's folder, for links that hold wherever the root is moved to


@dataclass(frozen=True, slots=True)
class Source:
    """What a number was read from.

    Attributes:
        link: to the folder of a stage's output, from the report's.
        trial: id of the trial; "" of a plain count, which no trial made.
    """

    link: str
    trial: str = ""


@dataclass(frozen=True, slots=True)
class System:
    """A row.

    Attributes:
        label: whose it is.
        settings: ids of the finalists that it belongs to; it was tested by the first one's trials.
        tested: its numbers.
    """

    label: str
    settings: tuple[str, ...]
    tested: Tested

    @property
    def anchors(self) -> list[str]:
        """``<setting>`` of a finalist, ``<setting>-student`` and so on of what stands beside it."""
        end = "" if self.tested.role == "distilled" else f"-{self.tested.name}"
        return [f"{setting}{end}" for setting in self.settings]

    @property
    def trials(self) -> list[str]:
        """Those that tested it, by seed; [] of a plain count."""
        return [f"{self.settings[0]}-{seed}" for seed in self.tested.by_seed]

    @property
    def sources(self) -> list[Source]:
        """Of each seed's number; of a plain count, of its one number."""
        trials = self.trials or [""]
        links = [f"{RUN_ROOT}/evaluation/{key}/" for key in self.tested.keys]
        return [Source(link, trial) for link, trial in zip(links, trials, strict=True)]

    @property
    def by_seed(self) -> dict[int, Source]:
        """Seed -> what its number was read from; {} of a plain count."""
        return dict(zip(self.tested.by_seed, self.sources, strict=False))


def systems(rows: Sequence[SettingRow], most: int | None = None) -> list[System]:
    """Each finalist, then the different students, teachers and plain counts once.

    Args:
        rows: the settings.
        most: rows of one role at most; plain counts always stand there. None = all.
    """
    finalists = [row for row in rows if row.tested]
    found = [
        System(row.label, (row.standing.setting.id,), row.tested["distilled"])
        for row in finalists[:most]
    ]
    for role in ROLES[1:]:
        found += _once([(row, row.tested[role]) for row in finalists], "of")[:most]
    plain = [(row, one) for row in finalists for one in row.plain.values()]
    return found + _once(plain, "plain count, on the data of")


def _once(given: Sequence[tuple[SettingRow, Tested]], whose: str) -> list[System]:
    """Those with equal ranks as one."""
    finalists = {row.standing.setting.id for row, _ in given}
    groups: dict[tuple[str, ...], list[tuple[SettingRow, Tested]]] = {}
    for row, one in given:
        groups.setdefault(one.keys, []).append((row, one))
    found = []
    for group in groups.values():
        label = f"{whose} {group[0][0].label}"
        if len(group) > 1:
            label += f" and {len(group) - 1} more"
        if len(group) == len(finalists) > 1:
            label = f"{whose} all finalists"
        ids = tuple(row.standing.setting.id for row, _ in group)
        found.append(System(label, ids, group[0][1]))
    return found
