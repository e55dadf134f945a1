"""When a refusal means the whole pass, and not only the request that it was given for."""

from __future__ import annotations

import re

from alkd_ray.llm_teachers._client import NotBilledError

LONGEST_WAIT_SECONDS = 300.0
REFUSED_ALIKE = 20
# What differs in words that say the same: the id of a request, a time.
_ID = re.compile(r"[\w.:-]*\d[\w.:-]*")
_ID_LENGTH = 8


class Refusals:
    """Refusals of one asker; belongs to one event loop.

    Some endpoints refuse everything in words that only people understand. So refusals for good
    that say the same, :data:`REFUSED_ALIKE` in a row, end the pass, or all its rows would be
    refused for good. An answer in between shows that it was the requests. Since a bad request is
    refused sooner than a good one is answered, a row of refusals counts only once all requests
    that were under way at its first one have ended.
    """

    def __init__(self) -> None:
        self._sent = 0
        self._under_way: set[int] = set()
        self._said = ""
        self._count = 0
        self._before = 0  # requests sent before the first of those that say the same

    def sent(self) -> int:
        """A request leaves; returns its number."""
        self._sent += 1
        self._under_way.add(self._sent)
        return self._sent

    def ended(self, number: int) -> None:
        """It is not under way any more, whatever came of it."""
        self._under_way.discard(number)

    def answered(self) -> None:
        """A request was answered."""
        self._said, self._count = "", 0

    def why_over(self, refused: NotBilledError) -> str:
        """Why the pass must end with a refusal of a request that has ended; "" = it need not."""
        if refused.is_hopeless:
            return str(refused)
        if not refused.is_permanent:
            wait = refused.retry_after_seconds or 0.0
            if wait <= LONGEST_WAIT_SECONDS:
                return ""
            return f"it asks for a wait of {wait:,.0f} s, too long for a pass: {refused}"
        if (said := _without_ids(str(refused))) != self._said:
            self._said, self._count, self._before = said, 0, self._sent
        self._count += 1
        if self._count < REFUSED_ALIKE or any(n <= self._before for n in self._under_way):
            return ""
        return (
            f"{self._count} requests in a row were refused alike and none was answered: {refused} "
            "(once that is mended, alkd annotate retry has them asked again)"
        )


def _without_ids(text: str) -> str:
    return _ID.sub(lambda found: "" if len(found[0]) >= _ID_LENGTH else found[0], text)
