"""The published GPT-4 answers: both forms are one recording, and what is malformed is repaired."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from alkd_ray.annotation.parse import is_short, parse_recorded
from alkd_ray.llm_teachers.replay import Replay

WANTED = 25


@dataclass(frozen=True)
class Published:
    """What is known of a dataset's recording."""

    folder: str
    text: str
    rows: int
    items: int
    empty: int
    with_a_repeat: int
    with_a_stranger: int
    longer: int
    degenerate: int  # one to four items, over and over


HETREC = Published("hetrec2011-ml", "ML/ML_LLM_Database.data", 4992, 8475, 1, 509, 1, 0, 24)
GAMES = Published("amazon-games", "Games/Games_LLM_Database.data", 5359, 26138, 152, 109, 0, 5, 5)
BOTH = pytest.mark.parametrize("known", [HETREC, GAMES], ids=lambda known: known.folder)


def table_form(data: Path, known: Published) -> Replay:
    return Replay(str(data / "alkdrec" / known.folder / "llm_rankings.parquet"))


@BOTH
def test_both_forms_are_one_recording(published_data: Path, known: Published) -> None:
    table = table_form(published_data, known)
    text = Replay(str(published_data / "alkdrec" / "original" / known.text))
    ids = table.recorded_ids()
    assert len(ids) == known.rows
    assert ids.tolist() == text.recorded_ids().tolist() == sorted(set(ids.tolist()))
    assert table.fingerprint == text.fingerprint
    for session_id in ids:
        one, other = table.ranking(session_id), text.ranking(session_id)
        assert one is not None
        assert other is not None
        assert one.tolist() == other.tolist()
    assert table.ranking(int(ids.max()) + 1) is None


@BOTH
def test_rankings_belong_to_their_sessions(published_data: Path, known: Published) -> None:
    """The recorded position of the target is where the session's target is in its ranking."""
    folder = published_data / "alkdrec" / known.folder
    targets = pd.read_parquet(folder / "sessions.parquet").set_index("session_id")["target"]
    positions = pd.read_parquet(folder / "llm_rankings.parquet").set_index("session_id")
    teacher = table_form(published_data, known)
    hits = 0
    for session_id, position in positions["hit_position"].items():
        ranking = teacher.ranking(int(session_id))
        assert ranking is not None
        items = ranking.tolist()
        if targets[session_id] in items:
            assert items.index(targets[session_id]) == position
            hits += 1
        else:
            assert position >= min(len(items), WANTED)
    assert hits > known.rows / 3


@BOTH
def test_every_recorded_answer_is_repaired_or_refused(
    published_data: Path, known: Published
) -> None:
    teacher = table_form(published_data, known)
    seen: Counter[str] = Counter()
    for session_id in teacher.recorded_ids():
        recorded = teacher.ranking(session_id)
        assert recorded is not None
        parsed = parse_recorded(recorded, known.items, WANTED)
        naive: list[int] = []
        for item in recorded.tolist():
            if item not in naive and item < known.items:
                naive.append(item)
        accepted = len(naive) >= WANTED / 5
        assert parsed.ranking.tolist() == (naive[:WANTED] if accepted else [])
        assert bool(parsed.failure) != accepted
        clean = accepted and recorded.tolist() == naive and len(naive) == WANTED
        assert (parsed.repairs == () and accepted) == clean
        seen[parsed.failure.partition(":")[0]] += 1
        seen["worth asking again"] += is_short(parsed, WANTED)
        seen.update({name.partition(":")[0] for name in parsed.repairs})
    assert seen["empty answer"] == known.empty
    assert seen["too few candidates"] == known.degenerate
    assert seen[""] == known.rows - known.empty - known.degenerate
    assert seen["duplicates dropped"] == known.with_a_repeat
    assert seen["strangers dropped"] == known.with_a_stranger
    assert seen["too long"] == known.longer
    assert seen["worth asking again"] < 0.04 * known.rows
