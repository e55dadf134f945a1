"""The simulated endpoint's own bill: what it generated, and what that costs."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from alkd_ray.errors import InputError

_PICO_PER_MICRO = 1_000_000  # a dollar per million tokens is a million pico-dollars a token
_SHARE_STEPS = 1_000_000  # a share of the price is taken in millionths, so that sums stay whole


@dataclass(frozen=True, slots=True)
class BillEntry:
    """One generated answer.

    Attributes:
        number: running number, from 1.
        request: hash of the request's messages.
        prompt_tokens: tokens read.
        completion_tokens: tokens written.
        microusd: the price, rounded up.
        is_batch: whether it is a line of a batch, at the batch's price.
    """

    number: int
    request: str
    prompt_tokens: int
    completion_tokens: int
    microusd: int
    is_batch: bool = False


class Bill:
    """A list of :class:`BillEntry`, in a file as well where one is given.

    One process writes a file at a time (a lock on it is held until :meth:`close`). An entry is in
    the operating system's hands when :meth:`add` returns, in one write: it outlives a kill -9 of
    this process, though not a power cut. A last line that is not whole is dropped when read back.
    """

    def __init__(
        self, file: Path | None, input_usd_per_million: float, output_usd_per_million: float
    ) -> None:
        """Opens the bill and reads what is there.

        Raises:
            InputError: the file is in use, or holds something else.
        """
        self._pico_per_input = round(input_usd_per_million * _PICO_PER_MICRO)
        self._pico_per_output = round(output_usd_per_million * _PICO_PER_MICRO)
        self.entries: list[BillEntry] = []
        self._prompt_tokens = self._completion_tokens = self._microusd = 0
        self._handle: int | None = None
        if file is not None:
            self._open(file)

    def add(
        self,
        request: str,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        batch_price_share: float | None = None,
    ) -> BillEntry:
        """Charges one answer.

        Args:
            request: hash of the request's messages.
            prompt_tokens: tokens read.
            completion_tokens: tokens written.
            batch_price_share: of a batch's line: the share of the live price that it costs. None =
                a live request.
        """
        pico = prompt_tokens * self._pico_per_input + completion_tokens * self._pico_per_output
        share = 1.0 if batch_price_share is None else batch_price_share
        entry = BillEntry(
            len(self.entries) + 1,
            request,
            prompt_tokens,
            completion_tokens,
            -(-pico * round(share * _SHARE_STEPS) // (_PICO_PER_MICRO * _SHARE_STEPS)),
            batch_price_share is not None,
        )
        if self._handle is not None:
            os.write(self._handle, (json.dumps(asdict(entry)) + "\n").encode())
        self._count(entry)
        return entry

    def totals(self) -> dict[str, int]:
        """Requests, tokens and micro-dollars of all entries."""
        return {
            "requests": len(self.entries),
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "microusd": self._microusd,
        }

    def close(self) -> None:
        """Lets go of the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self, file: Path) -> None:
        try:
            self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(
                f"the bill {file} cannot be opened: {error.strerror}; name a file in a folder "
                "that exists and can be written"
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"the bill {file} is in use by another server; end that one or name another file"
            ) from error
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._count(BillEntry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{file}, line {number}: this is no entry of a bill; name another file"
                ) from error
        if len(whole) < len(content):
            os.ftruncate(self._handle, len(whole))

    def _count(self, entry: BillEntry) -> None:
        self.entries.append(entry)
        self._prompt_tokens += entry.prompt_tokens
        self._completion_tokens += entry.completion_tokens
        self._microusd += entry.microusd
