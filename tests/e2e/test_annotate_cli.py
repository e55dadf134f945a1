"""``alkd annotate`` and ``alkd sweep plan`` as a user meets them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.annotation_rows import MODEL, Server, serving
from tests.e2e.conftest import CommandLine

LOCAL = ("annotation.engine=local", "difficulty.engine=local", "hints.enabled=false")
RATES = "{input_usd_per_million: 0.15, output_usd_per_million: 0.6}"


def endpoint(server: Server, name: str, *more: str) -> tuple[str, ...]:
    """Overrides that name a served endpoint and a budget of its own."""
    options = f"base_url: {server.url}, model: {MODEL}, api_key_env: '', rates: {RATES}"
    options = ", ".join([options, *more])
    return (*LOCAL, f"name={name}", "llm.teacher=openai-chat", f"llm.options={{{options}}}")


@contextlib.contextmanager
def refusing(status: int, error: dict[str, str], port: int = 0) -> Iterator[Server]:
    """An endpoint that answers every request with an error."""
    body = json.dumps({"error": error}).encode()

    class Refusal(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Refusal)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}/v1", Path())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_status_and_reparse_tell_what_the_store_holds(alkd: CommandLine, tmp_path: Path) -> None:
    with serving(tmp_path, "--repeated-share", "0.5") as server:
        words = endpoint(server, "status")
        alkd("annotate", "run", str(alkd.config), *words)
        bill = server.bill()
        (history,) = alkd.home.glob("annotation/*/progress.json")
        last = json.loads(history.read_text())[-1]
        found = json.loads(alkd("annotate", "status", "--json").stdout)
        (row,) = [row for row in found["asked"] if row["endpoint"] == server.url]
        again = json.loads(alkd("annotate", "reparse", str(alkd.config), *words, "--json").stdout)
        assert server.bill() == bill
    assert (row["requests"], row["answered"], row["failed"]) == (60, 60, 0)
    assert row["answers"] == bill["requests"]
    assert row["cost_microusd"] == bill["microusd"]
    assert again["questions"] == again["read"] == again["accepted"] == 60
    assert again["changed"] == 0
    # The last figures shown are the ledger's, and the endpoint's own.
    assert last["settled_microusd"] == bill["microusd"]
    assert last["settled_tokens"] == bill["prompt_tokens"] + bill["completion_tokens"]
    assert (last["sent"], last["done"], last["total"]) == (bill["requests"], 60, 60)
    assert last["held_microusd"] == last["unresolved_microusd"] == last["failed"] == 0
    assert "60 asked, 60 answered" in alkd("annotate", "status").stdout


def test_what_was_refused_for_good_can_be_asked_again(alkd: CommandLine, tmp_path: Path) -> None:
    with refusing(400, {"message": "no such tier", "code": "bad_tier"}) as server:
        # More that say the same would stop the pass.
        words = (*endpoint(server, "refused"), "selection.budget=8")

        def refused() -> dict[str, int]:
            return json.loads(alkd("annotate", "status", "--json").stdout)["failures"]

        first = alkd("annotate", "run", str(alkd.config), *words, "--json", status=3)
        assert json.loads(first.stdout)["failed"] == 8
        (reason,) = refused()
        assert "no such tier" in reason
        assert "refused for good: 8" in alkd("annotate", "status").stdout
        assert "0 requests" in alkd("annotate", "retry", "--reason", "HTTP 418").stdout
        assert "8 requests" in alkd("annotate", "retry", "--reason", "HTTP 400").stdout
        assert refused() == {}
        alkd("annotate", "run", str(alkd.config), *words, status=3)
        assert refused() == {reason: 8}


@pytest.mark.parametrize("verb", ["status", "retry"])
def test_where_nothing_was_bought_nothing_is_made(
    alkd: CommandLine, tmp_path: Path, verb: str
) -> None:
    empty = replace(alkd, home=tmp_path / "empty")
    assert "nothing was bought" in empty("annotate", verb, status=2).stderr
    assert not (empty.home / "store").exists()


def test_kept_hints_can_be_named(alkd: CommandLine, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        words = [word for word in endpoint(server, "hinted") if "hints" not in word]
        alkd("annotate", "run", str(alkd.config), *words)
        kept = json.loads(alkd("annotate", "hints", "--json").stdout)
        ((key, written),) = kept.items()
        billed = server.bill()["requests"]
        named = (f"hints.artifact={key}", "name=named")
        plan = json.loads(
            alkd("annotate", "plan", str(alkd.config), *words, *named, "--json").stdout
        )
        alkd("annotate", "run", str(alkd.config), *words, *named)
        # The same text asks the same questions: all of them are there.
        assert server.bill()["requests"] == billed
        own = tmp_path / "own.txt"
        own.write_text("Readers like whales.")
        alkd("annotate", "run", str(alkd.config), *words, f"hints.artifact={own}", "name=own")
        assert server.bill()["requests"] == billed + 60
    assert (plan["requests"], plan["to_send"]) == (60, 0)
    assert written["model"] == MODEL
    assert written["prompt"] == "hints.v1"
    missing = alkd("annotate", "run", str(alkd.config), "hints.artifact=nowhere", status=2)
    assert "alkd annotate hints" in missing.stderr


def at_a_terminal(alkd: CommandLine, answer: str, *words: str) -> tuple[int, str]:
    """A command with a terminal of its own; ``answer`` is typed when it asks."""
    here, there = pty.openpty()
    child = subprocess.Popen(
        alkd.command(*words), env=alkd.environment, stdin=there, stdout=there, stderr=there
    )
    os.close(there)
    shown = b""
    while True:
        if not select.select([here], [], [], 120)[0]:
            child.kill()
            break
        try:
            piece = os.read(here, 4096)
        except OSError:  # the child has closed its side
            break
        shown += piece
        if b"--yes answers this" in shown and answer:
            os.write(here, answer.encode())
            answer = ""
    os.close(here)
    return child.wait(120), shown.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("answer", "flags", "status", "sent"),
    [("n\n", (), 4, 0), ("y\n", (), 0, 60), ("", ("--yes",), 0, 60)],
    ids=["no", "yes", "flag"],
)
def test_real_money_is_asked_about_at_a_terminal(
    alkd: CommandLine, tmp_path: Path, answer: str, flags: tuple[str, ...], status: int, sent: int
) -> None:
    there = replace(alkd, home=alkd.home)
    with serving(tmp_path) as server:
        words = ("annotate", "run", str(there.config), *endpoint(server, "asked"), *flags)
        ended, shown = at_a_terminal(there, answer, *words)
        assert (ended, server.bill()["requests"]) == (status, sent), shown
    assert "60 of 60 requests to be sent" in shown


def test_a_sweep_is_planned_as_a_whole(alkd: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    run = alkd.config.read_text().replace("\n", "\n  ")
    file.write_text(
        f"name: many\nrun:\n  {run}\nover:\n  selection.budget: {{grid: [20, 40]}}\n"
        "  selection.strategy: {grid: [random, easiest]}\n"
    )
    words = ("difficulty.engine=local", "hints.enabled=false")
    found = json.loads(alkd("sweep", "plan", str(file), *words, "--json").stdout)
    assert found["settings"] == 4
    assert found["unshared"] == 2 * (20 + 40)
    # The easiest 20 are among the easiest 40; random ones overlap as they may.
    assert 40 <= found["plan"]["requests"] <= 20 + 40 + 40
    assert found["plan"]["to_send"] == found["plan"]["requests"]
    assert "4 settings ask" in alkd("sweep", "plan", str(file), *words).stdout
    bad = alkd("sweep", "plan", str(tmp_path / "none.yaml"), status=2)
    assert "none.yaml" in bad.stderr
