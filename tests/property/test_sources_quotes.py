"""Whatever stands amid the quotes of a table: each of its lines is kept, or counted as damaged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray.sources._delimited import read_delimited

PLAIN = ["a", "b c", "", "é", "\xff"]
FIELDS = [*PLAIN, '"d, e"', '"f\ng"', '"h""i"', '"', '"j', 'k"', '12"', '"l" m']


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.just(["x", "y", "z"]), st.lists(st.sampled_from(FIELDS), max_size=4)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.booleans(),
)
def test_no_line_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    end: str,
    ends_so: bool,
    has_header: bool,
) -> None:
    names = ["one", "two", "three"]
    text = end.join([*([",".join(names)] if has_header else []), *map(",".join, rows), "x,y,z"])
    path = tmp_path_factory.mktemp("quotes") / "log.csv"
    # 0xFF alone is not UTF-8; everything else is.
    raw = (text + end * ends_so).encode().replace("\xff".encode(), b"\xff")
    path.write_bytes(raw)
    found = read_delimited(
        path,
        names,
        delimiter=",",
        quote='"',
        encoding="utf-8",
        columns=() if has_header else names,
    )
    lines = text.replace(end, "\n").split("\n")
    kept = [[found.values[name][row].as_py() for name in names] for row in range(len(found))]
    places = found.places_of(list(range(len(found))))
    taken: list[int] = []
    for place, fields in zip(places, kept, strict=True):
        over = 1 + sum(field.replace(end, "\n").count("\n") for field in fields)
        taken += range(place, place + over)
    for line in found.broken:
        taken += range(line.place, line.place + line.lines)
    empty = [number for number, line in enumerate(lines, 1) if not line]
    header = [1] if has_header else []
    assert sorted({*taken, *header, *empty}) == list(range(1, len(lines) + 1))
    assert len(taken) == len(set(taken))
    # What is kept of the plain rows is what was written.
    for place, fields in zip(places, kept, strict=True):
        if '"' not in lines[place - 1]:
            assert ",".join(fields) == lines[place - 1].replace("\xff", "\N{REPLACEMENT CHARACTER}")
