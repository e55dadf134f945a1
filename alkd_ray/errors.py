"""The errors that users see, each ending in an exit status of the command line."""

from __future__ import annotations


class AlkdError(Exception):
    """Base of the errors whose message is meant for the user; ``exit_status`` is its code."""

    exit_status = 1


class InputError(AlkdError):
    """Bad input or config: the message says what, where, and what to do."""

    exit_status = 2


class BudgetError(AlkdError):
    """The work cannot be done, or go on, under the cap."""

    exit_status = 4
