"""``alkd``: mounts the verbs and turns errors into one sentence and an exit status."""

from __future__ import annotations

import errno
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from alkd_ray.errors import AlkdError

_INTERRUPTED = 130
_ENDED = 128 + signal.SIGTERM
# What the machine lacks, or forbids. Other errors of its are defects, and keep their traceback.
_OF_THE_MACHINE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def build() -> typer.Typer:
    """The command line with all its verbs; each imports what it needs when it is called."""
    from alkd_ray.cli import annotate, data, ledger, llm, reproduce, run, serving, show, sweep

    app = typer.Typer(
        name="alkd",
        help="Decide which sessions are worth an LLM's ranking, buy them under a hard cap, "
        "distil them into a tiny student.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    run.add_to(app)
    app.add_typer(data.app, name="data", help="Import, describe and validate sessions.")
    app.add_typer(annotate.app, name="annotate", help="Plan and buy rankings.")
    app.add_typer(sweep.app, name="sweep")
    app.command("reproduce")(reproduce.reproduce)
    app.add_typer(ledger.app, name="ledger", help="What was spent, held, and left unresolved.")
    app.add_typer(llm.app, name="llm", help="The simulated chat-completions endpoint.")
    app.add_typer(show.config_app, name="config", help="Show and check a config.")
    show.add_to(app)
    serving.add_to(app)
    return app


def main() -> None:
    """Entry point. Exit: 0 complete, 1 failure, 2 bad input, 3 partial, 4 stopped, 5 breached."""
    signal.signal(signal.SIGTERM, _end)
    try:
        build()()
    except AlkdError as error:
        sys.stderr.write(f"alkd: {error}\n")
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, SystemExit) as ended:
        # The library of the command line makes an exit of most interruptions.
        status = _INTERRUPTED if isinstance(ended, KeyboardInterrupt) else ended.code
        if status not in (_INTERRUPTED, _ENDED):
            raise
        sys.stderr.write("alkd: interrupted; what is done is kept, the same command goes on\n")
        sys.exit(status)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"alkd: {where}{error.strerror}; what is done is kept\n")
        sys.exit(1)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """What Kubernetes, Slurm and others end a process with does what Ctrl-C does."""
    sys.exit(_ENDED)
