"""Outputs in a folder that several machines reach: whole or not there, and made only once."""

from __future__ import annotations

import copy
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pytest

from alkd_ray import artifacts, config, pipeline, temporary
from alkd_ray import storage as storages
from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.artifacts import StageOutput
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.pipeline import Engines
from alkd_ray.results import run_id_of
from alkd_ray.scoring import ScoreJob
from alkd_ray.stages import Context
from alkd_ray.storage import Storage
from alkd_ray.types import AnnotationOutcome

SECRET = "not-to-be-seen"


def written_output(
    folder: Path, *, record: bool = False, text: str = "whole", large_bytes: int = 70_000
) -> Path:
    """Writes files of all sorts into ``folder``: nested, empty, compressed, with odd names."""
    files = {
        "out.txt": text.encode(),
        "empty": b"",
        "checkpoint/weights.bin": (text.encode() + bytes(range(256)))[:256] * (large_bytes // 256),
        "checkpoint/deep/compressed.json.gz": gzip.compress(text.encode(), mtime=0),
        "odd names/a b+c%20d=é.json": text.encode(),
    }
    for name, written in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written)
    if record:
        (folder / "stage.json").write_text(json.dumps({"stage": "stage", "seconds": 1.5}, indent=1))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file below ``folder``."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def _no_storage_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALKD_STORAGE", raising=False)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared folder"
    folder.mkdir()
    return folder


def produced(root: Path, storage: Storage | None, made: list[int]) -> StageOutput:
    def make(folder: Path) -> None:
        made.append(1)
        written_output(folder)

    return artifacts.produce(
        root, "stage", make, version=1, inputs={}, settings={}, seed=1, storage=storage
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("some/folder", "neither an absolute path nor a URL"),
        ("ftp://host/folder", "neither an absolute path nor a URL"),
        ("file://folder", "file:///folder"),
        ("s3://", "s3://bucket/prefix"),
        ("gs:///prefix", "gs://bucket/prefix"),
        (f"s3://key:{SECRET}@bucket/prefix", "holds no credentials"),
        (f"s3://key:{SECRET}/with/slash@bucket/prefix", "holds no credentials"),
        (f"s3://key:{SECRET}", "holds no credentials"),
        (f"s3://bucket/prefix?endpoint_override=http%3A%2F%2Fx%3A{SECRET}%40host", "credentials"),
        (f"gs://{SECRET}@bucket/prefix", "holds no credentials"),
        (f"s3://bucket/prefix?secret_key={SECRET}", "endpoint_override, region, scheme"),
        (f"file:///folder?{SECRET}", "may stand nothing"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_unseen(
    url: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="storage: ") as in_config:
        config.make({"storage": url})
    monkeypatch.setenv("ALKD_STORAGE", url)
    with pytest.raises(InputError, match="ALKD_STORAGE: ") as in_environment:
        Storage.of()
    for refused in (in_config, in_environment):
        assert why in str(refused.value)
        assert SECRET not in str(refused.value)
        assert refused.value.__cause__ is None


def test_where_outputs_are_kept_is_no_part_of_a_run(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, stored = config.make({}), config.make({"storage": str(shared)})
    assert run_id_of(plain) == run_id_of(stored)
    assert Context(plain, tmp_path, Told()).storage is None
    assert Storage.of(stored.storage) is Context(stored, tmp_path, Told()).storage
    monkeypatch.setenv("ALKD_STORAGE", "gs://anonymous@bucket/from-environment")
    from_environment = Context(plain, tmp_path, Told()).storage
    assert from_environment is not None
    assert from_environment.url == "gs://anonymous@bucket/from-environment"
    own = Context(stored, tmp_path, Told()).storage
    assert own is not None
    assert own.url == str(shared)


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/"])
def test_an_output_comes_back_as_it_was(form: str, shared: Path, tmp_path: Path) -> None:
    url = form.format(str(shared).replace(" ", "%20") if "://" in form else shared)
    folder = written_output(tmp_path / "made", record=True)
    storage = Storage(url)
    there = tmp_path / "root" / "stage" / "key"
    assert not storage.has("stage", "key")
    assert not storage.fetch("stage", "key", there)
    assert not there.parent.exists()
    storage.keep("stage", "key", folder)
    other = copy.deepcopy(storage)  # as Ray sends it: by its URL
    assert other.has("stage", "key")
    assert other.fetch("stage", "key", there)
    assert content(there) == content(folder)
    assert [path.name for path in there.parent.iterdir()] == ["key"]
    assert {path.name for path in shared.iterdir()} == {"stage"}


def test_an_output_is_made_once_for_all_roots(shared: Path, tmp_path: Path) -> None:
    storage, made = Storage(str(shared)), []
    here, there = tmp_path / "here", tmp_path / "there"
    first = produced(here, storage, made)
    second = produced(there, Storage(str(shared)), made)
    assert (first.reused, second.reused) == (False, True)
    assert len(made) == 1
    assert (second.key, second.seconds) == (first.key, round(first.seconds, 3))
    assert content(second.folder) == content(first.folder)
    elsewhere = artifacts.found(tmp_path / "third", "stage", first.key, Storage(str(shared)))
    assert elsewhere.reused
    assert content(elsewhere.folder) == content(first.folder)


def test_what_was_made_before_there_was_a_storage_is_kept_when_it_is_reused(
    shared: Path, tmp_path: Path
) -> None:
    made: list[int] = []
    key = produced(tmp_path / "here", None, made).key
    assert not artifacts.is_there(tmp_path / "there", "stage", key, Storage(str(shared)))
    assert produced(tmp_path / "here", Storage(str(shared)), made).reused
    assert artifacts.is_there(tmp_path / "there", "stage", key, Storage(str(shared)))
    assert artifacts.found(tmp_path / "there", "stage", key).reused  # now without the storage
    assert len(made) == 1


@pytest.mark.parametrize("is_fetched", [False, True])
def test_remains_of_an_output_are_replaced(is_fetched: bool, shared: Path, tmp_path: Path) -> None:
    """As an interrupted ``rm -rf`` leaves them: without the record that says that it is whole."""
    storage = Storage(str(shared)) if is_fetched else None
    made: list[int] = []
    first = produced(tmp_path / "root", storage, made)
    whole = content(first.folder)
    (first.folder / "stage.json").unlink()
    (first.folder / "out.txt").write_text("half")
    again = produced(tmp_path / "root", storage, made)
    assert again.reused == is_fetched
    assert len(made) == 2 - is_fetched
    assert content(again.folder).keys() == whole.keys()
    assert (again.folder / "out.txt").read_text() == "whole"
    assert [path.name for path in (tmp_path / "root" / "stage").iterdir()] == [first.key]


def test_machines_that_share_a_root_leave_each_others_work_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process numbers are each machine's own: equal ones may be two, and missing ones be alive."""
    key = produced(tmp_path / "other root", None, []).key
    dead = next(n for n in range(2**22, 2, -1) if not Path(f"/proc/{n}").exists())
    lying = {}
    for name in ("first.example", "second"):
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)
        monkeypatch.setattr("os.getpid", lambda: dead)
        lying[name] = temporary.beside(tmp_path / "stage" / key)
        (lying[name] / "deep").mkdir(parents=True)
        monkeypatch.undo()
    monkeypatch.setattr("socket.gethostname", lambda: "second")

    def on_the_other_machine_too(folder: Path) -> None:
        (folder / "half").touch()
        assert lying["first.example"].exists()
        assert not lying["second"].exists()
        monkeypatch.setattr("socket.gethostname", lambda: "first.example")
        produced(tmp_path, None, [])  # by a process of the same number
        assert (folder / "half").exists()

    output = artifacts.produce(
        tmp_path, "stage", on_the_other_machine_too, version=1, inputs={}, settings={}, seed=1
    )
    assert (output.folder / "out.txt").read_text() == "whole"  # the other one was first
    assert [path.name for path in (tmp_path / "stage").iterdir()] == [key]


def test_an_output_that_is_there_is_left_alone(shared: Path, tmp_path: Path) -> None:
    Storage(str(shared)).keep("stage", "key", written_output(tmp_path / "first", record=True))
    before = content(shared)
    other = written_output(tmp_path / "second", record=True, text="other")
    Storage(str(shared)).keep("stage", "key", other)
    assert content(shared) == before


def test_an_unknown_key_is_an_input_error_that_names_both_places(
    shared: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"stage/nothing.*no such output") as refused:
        artifacts.found(tmp_path / "root", "stage", "nothing", Storage(str(shared)))
    assert str(shared) in str(refused.value)
    with pytest.raises(InputError, match="no such output"):
        artifacts.found(tmp_path / "root", "stage", "nothing")


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "not mounted"
    made: list[int] = []
    with pytest.raises(InputError, match=r"not mounted: there is no such folder here"):
        produced(tmp_path / "root", Storage(str(missing)), made)
    assert made == []  # noticed before the work, not after it
    assert not missing.exists()


@pytest.mark.parametrize("bytes_written", [1, 100_000, 1_500_000])
def test_an_upload_killed_in_the_middle_is_not_taken_for_whole(
    bytes_written: int, shared: Path, tmp_path: Path
) -> None:
    """The kernel ends the process, without a chance to clean up, at a given byte of a file."""
    folder = written_output(tmp_path / "made", record=True, large_bytes=2_000_000)
    code = (
        "import resource, signal; from pathlib import Path; from alkd_ray.storage import Storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_written}, {bytes_written}))\n"
        f"Storage({str(shared)!r}).keep('stage', 'key', Path({str(folder)!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGXFSZ
    assert any(path.is_file() for path in shared.rglob("*"))
    storage = Storage(str(shared))
    assert not storage.fetch("stage", "key", tmp_path / "root" / "key")
    storage.keep("stage", "key", folder)
    assert Storage(str(shared)).fetch("stage", "key", tmp_path / "root" / "key")
    assert content(tmp_path / "root" / "key") == content(folder)


def test_an_upload_that_fails_is_an_error_and_not_taken_for_whole(
    shared: Path, tmp_path: Path
) -> None:
    """One file is too large for what the process may write, as on a full disk."""
    folder = written_output(tmp_path / "made", record=True, large_bytes=2_000_000)
    code = (
        "import resource; from pathlib import Path; from alkd_ray.errors import AlkdError\n"
        "from alkd_ray.storage import Storage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "try:\n"
        f"    Storage({str(shared)!r}).keep('stage', 'key', Path({str(folder)!r}))\n"
        "except AlkdError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"storage {shared}: [Errno 27]")
    assert done.stdout.count("\n") == 1
    assert not Storage(str(shared)).has("stage", "key")


@pytest.mark.parametrize("times", [1, 9])
def test_an_upload_that_the_server_calls_invalid_is_begun_anew(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """As Google's does with a part that it has had already, its answer lost."""
    monkeypatch.setattr(storages, "WAITS_SECONDS", (0.0, 0.0))
    write = storages._Place.write
    refused: list[str] = []

    def out_of_step(place: Any, source: IO[bytes], name: str) -> None:
        if name.endswith("out.txt") and len(refused) < times:
            refused.append(name)
            raise pa.ArrowInvalid("Invalid Content-Range start: expected 0, got 1")
        write(place, source, name)

    monkeypatch.setattr(storages._Place, "write", out_of_step)
    folder = written_output(tmp_path / "output", record=True)
    storage = Storage(str(shared))
    if times == 1:
        storage.keep("stage", "key", folder)
        assert storage.fetch("stage", "key", tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)
    else:
        with pytest.raises(AlkdError, match=r"cannot be reached, tried 3 times.*expected 0, got 1"):
            storage.keep("stage", "key", folder)
        assert not storage.has("stage", "key")
    assert len(refused) == min(times, 3)


def test_uploads_at_once_never_mix(shared: Path, tmp_path: Path) -> None:
    """Four upload one output, of different content so that a mixture shows; four download it."""
    folders = [
        written_output(tmp_path / f"made {n}", record=True, text=f"{n}", large_bytes=3_000_000)
        for n in range(4)
    ]
    whole = [content(folder) for folder in folders]
    start = threading.Barrier(8)
    seen: list[dict[str, bytes]] = []
    failures: list[BaseException] = []

    def upload(number: int) -> None:
        start.wait()
        Storage(str(shared)).keep("stage", "key", folders[number])

    def download(number: int) -> None:
        storage = Storage(str(shared))
        start.wait()
        for turn in range(1_000_000):
            there = tmp_path / "roots" / f"{number}-{turn}"
            if storage.fetch("stage", "key", there):
                seen.append(content(there))
                if len(seen) >= 12:
                    return

    def guarded(do: Callable[[int], None], number: int) -> None:
        try:
            do(number)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=guarded, args=(do, number))
        for do in (upload, download)
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(seen) >= 12
    assert all(one in whole for one in seen)


def test_a_damaged_output_says_what_to_do(shared: Path, tmp_path: Path) -> None:
    Storage(str(shared)).keep("stage", "key", written_output(tmp_path / "made", record=True))
    record = shared / "stage" / "key" / "stage.json"
    [lost] = shared.rglob("weights.bin")
    lost.unlink()
    there = tmp_path / "root" / "key"
    with pytest.raises(AlkdError, match=r"stage/key is damaged, it lacks .*weights.bin; delete it"):
        Storage(str(shared)).fetch("stage", "key", there)
    outside = tmp_path / "outside"
    named = json.loads(record.read_text())
    for text in (
        json.dumps({**named, "files": ["../../../../outside"]}),
        json.dumps({**named, "files": [str(outside)]}),
        json.dumps({"stage": "stage"}),
        "{",
    ):
        record.write_text(text)
        outside.write_text("of somebody else")
        with pytest.raises(AlkdError, match=r"stage/key is damaged, its stage\.json"):
            Storage(str(shared)).fetch("stage", "key", there)
        assert outside.read_text() == "of somebody else"
    assert list(there.parent.iterdir()) == []


@dataclass
class Told:
    """A listener that remembers the outputs."""

    outputs: list[StageOutput] = field(default_factory=list)

    def stage_started(self, stage: str, seed: int | None) -> None: ...

    def stage_finished(self, output: StageOutput, seed: int | None) -> None:
        self.outputs.append(output)

    def progress(self, done: int, total: int, text: str) -> None: ...


def test_a_run_on_another_machine_makes_and_buys_nothing_again(
    shared: Path, tmp_path: Path
) -> None:
    resolved = config.make(
        {
            "name": "tiny",
            "data": {"source": "synthetic", "options": {"size": "tiny"}},
            "teacher": {"dim": 16, "training": {"max_steps": 60}},
            "student": {"dim": 8, "training": {"max_steps": 60}},
            "candidates": {"size": 20},
            "selection": {"budget": 15},
            "annotation": {"wanted": 10, "in_flight": 8},
            "distillation": {"training": {"max_steps": 40}},
            "evaluation": {"resamples": 100, "baselines": ["popularity"]},
            "storage": f"file://{str(shared).replace(' ', '%20')}",
        }
    )
    here, there = Told(), Told()
    first = pipeline.run(resolved, tmp_path / "here", here)

    def never(job: ScoreJob | AnnotationJob, more: object = None) -> AnnotationOutcome:
        raise AssertionError("this was done before, on the other machine")

    second = pipeline.run(
        resolved, tmp_path / "there", there, Engines(score=never, annotate=never, approve=never)
    )
    assert first.status == second.status == "complete"
    made = [f"{output.stage}/{output.key}" for output in here.outputs]
    assert [f"{output.stage}/{output.key}" for output in there.outputs] == made
    assert not any(output.reused for output in here.outputs)
    assert all(output.reused for output in there.outputs)
    assert {output.stage for output in there.outputs} >= {"import", "annotation", "report"}
    for one, other in zip(here.outputs, there.outputs, strict=True):
        assert content(one.folder) == content(other.folder)
        assert Storage(str(shared)).has(one.stage, one.key)
    assert not (tmp_path / "there" / "store").exists()  # nothing was asked
