"""The restricted reader of pickled frames: it reads what pandas writes and runs nothing."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from alkd_ray.errors import InputError
from alkd_ray.sources.alkdrec import ALKDRecFiles

TITLES = 'itemID,title\n1,Alpha\n2,"Beta, the second"\n2,Again\n3,Gamma\n'


def frame(rows: list[tuple[Any, Any]]) -> pd.DataFrame:
    """As the published ones: object columns, labels of columns as objects."""
    columns = pd.Index(["session", "label"], dtype=object)
    made = pd.DataFrame(index=range(len(rows)), columns=columns, dtype=object)
    for row, (session, label) in enumerate(rows):
        made.at[row, "session"], made.at[row, "label"] = session, label
    return made


def folder_with(tmp_path: Path, content: bytes, titles: str = TITLES) -> Path:
    (tmp_path / "X.pkl").write_bytes(content)
    (tmp_path / "X_title.csv").write_text(titles, encoding="utf-8")
    return tmp_path


class Runs:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("reorder", [False, True], ids=["whole", "filtered"])
def test_reads_what_pandas_writes(tmp_path: Path, protocol: int, reorder: bool) -> None:
    rows = [(["1", "2"], "3"), (["9", "3"], "1"), (["9"], "1"), (["1"], "9"), (["2", "2"], "2")]
    made = frame([(["1"], "1"), *rows]) if reorder else frame(rows)
    made = made.drop(index=0) if reorder else made  # then its row labels are an array, not a range
    dataset = ALKDRecFiles(
        path=str(folder_with(tmp_path, pickle.dumps(made, protocol=protocol)))
    ).load()
    # 9 has no title: gone from an input, and a session dropped where it is all there is.
    sessions = dataset.sessions
    assert [sessions.items_of(row).tolist() for row in range(len(sessions))] == [
        [0, 1],
        [2],
        [1, 1],
    ]
    assert sessions.targets.tolist() == [2, 0, 1]
    assert sessions.ids.tolist() == [0, 1, 2]
    assert dataset.catalogue.titles.tolist() == ["Alpha", "Beta, the second", "Gamma"]


def test_reads_columns_in_separate_blocks(tmp_path: Path) -> None:
    made = frame([(["1", "2"], "3")] * 3)
    made["label"] = pd.Series(["3"] * 3, dtype=object)  # a block of its own
    made["weight"] = 1.5  # not looked at
    made.columns = pd.Index(["session", "label", "weight"], dtype=object)
    dataset = ALKDRecFiles(path=str(folder_with(tmp_path, pickle.dumps(made)))).load()
    assert dataset.sessions.targets.tolist() == [2, 2, 2]


def test_missing_column_names_those_there_are(tmp_path: Path) -> None:
    made = frame([(["1", "2"], "3")])
    made.columns = pd.Index(["session", "target"], dtype=object)
    with pytest.raises(InputError, match="no column 'label'; there are session, target"):
        ALKDRecFiles(path=str(folder_with(tmp_path, pickle.dumps(made)))).load()


def test_the_text_type_of_new_pandas_is_refused_with_advice(tmp_path: Path) -> None:
    made = frame([(["1", "2"], "3")])
    made["label"] = made["label"].astype("str")
    with pytest.raises(InputError, match="save its frame as Parquet and import that as a table"):
        ALKDRecFiles(path=str(folder_with(tmp_path, pickle.dumps(made)))).load()


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("os", "system", ("touch {marker}",)),
        ("posix", "system", ("touch {marker}",)),
        ("subprocess", "getoutput", ("touch {marker}",)),
        ("builtins", "eval", ("open({marker!r}, 'w')",)),
        ("builtins", "exec", ("open({marker!r}, 'w')",)),
        ("builtins", "getattr", ("x", "y")),
        ("pandas", "read_pickle", ("{marker}",)),
        ("pandas.core.frame", "DataFrame.to_csv", ("{marker}",)),
        ("numpy", "save", ("{marker}", 1)),
        ("numpy._core.multiarray", "fromfile", ("{marker}",)),
    ],
)
@pytest.mark.parametrize("protocol", [0, 4])
def test_refuses_every_other_name(
    tmp_path: Path, module: str, name: str, arguments: tuple[Any, ...], protocol: int
) -> None:
    marker = tmp_path / "it-ran"
    filled = tuple(a.format(marker=str(marker)) if isinstance(a, str) else a for a in arguments)
    folder = folder_with(tmp_path, call_of(module, name, filled, protocol))
    with pytest.raises(InputError, match=rf"asks for {module}\.{name}, which is none") as raised:
        ALKDRecFiles(path=str(folder)).load()
    assert "\n" not in str(raised.value)
    assert not marker.exists()


def test_the_attack_is_real(tmp_path: Path) -> None:
    """The same bytes do run a program when unpickled in the usual way."""
    marker = tmp_path / "it-ran"
    content = call_of("os", "system", (f"touch {marker}",), 4)
    pickle.Unpickler(io.BytesIO(content)).load()
    assert marker.exists()


def test_refuses_code_inside_a_good_frame(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    made = frame([(["1", "2"], "3"), ([Runs(os.system, f"touch {marker}")], "3")])
    with pytest.raises(InputError, match=r"asks for posix.system"):
        ALKDRecFiles(path=str(folder_with(tmp_path, pickle.dumps(made)))).load()
    assert not marker.exists()


def test_damaged_pickles_are_one_sentence(tmp_path: Path) -> None:
    whole = pickle.dumps(frame([(["1", "2"], "3")] * 50))
    for content in (b"", b"not a pickle", whole[: len(whole) // 2], pickle.dumps([1, 2])):
        with pytest.raises(InputError, match=r"X.pkl: is not a pickled pandas frame") as raised:
            ALKDRecFiles(path=str(folder_with(tmp_path, content))).load()
        assert "\n" not in str(raised.value)


def test_values_that_are_not_sessions(tmp_path: Path) -> None:
    for rows, said in (
        ([(["1"], "1"), ("12", "1")], "row 1, field session: '12' is not a list"),
        ([(["1"], "1"), (["1", 2], "1")], "row 1, field session"),
        ([(["1"], 1)], "row 0, field label: '1' is not an item id"),
    ):
        with pytest.raises(InputError, match=said):
            ALKDRecFiles(path=str(folder_with(tmp_path, pickle.dumps(frame(rows))))).load()


def test_title_files_that_do_not_fit(tmp_path: Path) -> None:
    content = pickle.dumps(frame([(["1", "2"], "3")]))
    for titles, said in (
        ("id,title\n1,A\n", "line 1 is 'id,title'"),
        ('itemID,title\n1,A\n"2\nb",B,C\n', "line 4, field itemID"),
        ("itemID,title\n7,A\n", "do the two files belong together"),
    ):
        with pytest.raises(InputError, match=said):
            ALKDRecFiles(path=str(folder_with(tmp_path, content, titles))).load()
    (tmp_path / "X_title.csv").write_bytes("itemID,title\n1,é\n".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read as UTF-8 CSV"):
        ALKDRecFiles(path=str(tmp_path)).load()
    (tmp_path / "X.pkl").unlink()
    with pytest.raises(InputError, match=r"X.pkl: is not there"):
        ALKDRecFiles(path=str(tmp_path)).load()
    with pytest.raises(InputError, match="there is no such folder"):
        ALKDRecFiles(path=str(tmp_path / "none")).load()


def call_of(module: str, name: str, arguments: tuple[Any, ...], protocol: int) -> bytes:
    """A pickle that calls ``module.name(*arguments)``, written by hand."""
    body = pickle.dumps(arguments, protocol=protocol)[:-1]  # without its STOP
    if protocol == 0:
        return f"c{module}\n{name}\n".encode() + body + b"R."
    header, rest = body[:2], body[2:]
    rest = rest[9:] if rest[:1] == b"\x95" else rest  # without the frame's length
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return header + texts + b"\x93" + rest + b"R."
