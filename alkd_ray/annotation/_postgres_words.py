"""What PostgreSQL is told, and what it says: statements, values, addresses, messages."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict

from alkd_ray.annotation._connection import encodable
from alkd_ray.errors import InputError

# A list of texts as one parameter, in JSON: the one thing that both can, and say differently.
_LISTED = "SELECT value FROM json_each(?)"
_LISTED_HERE = "SELECT jsonb_array_elements_text(?::jsonb)"


class _Nothing:
    """The rows of a statement that finds none."""

    def fetchone(self) -> None:
        """There is none."""

    def fetchall(self) -> list[Any]:
        """There are none."""
        return []

    def fetchmany(self, size: int = 1, /) -> list[Any]:
        """There are none."""
        return []

    def __iter__(self) -> Iterator[Any]:
        return iter(())


NOTHING = _Nothing()


class NumberLoader(Loader):
    """Sums of integers come as NUMERIC, and are integers."""

    def load(self, data: Any) -> int | float:
        text = bytes(data)
        return float(text) if b"." in text else int(text)


@functools.lru_cache(maxsize=512)
def translated(sql: str) -> bytes:
    """A statement as psycopg writes parameters, and PostgreSQL lists of keys."""
    if "?" in sql:
        sql = sql.replace("%", "%%").replace(_LISTED, _LISTED_HERE).replace("?", "%s")
    return sql.encode()


def adapted(value: Any) -> Any:
    """A parameter for columns that are the same in both databases; truths are integers there."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        return encodable(value).replace("\x00", "\\x00")  # which PostgreSQL has no form for
    return value


def parsed(url: str) -> dict[str, Any]:
    """The URL's parts.

    Raises:
        InputError: it is not well formed; its text is not repeated, for it may hold a password.
    """
    malformed = InputError(
        "the books' URL is not of the form postgresql://user@host:port/database (in a password, "
        "write @ as %40, / as %2F and : as %3A)"
    )
    if not re.fullmatch(r"postgres(ql)?://[^/@]*(@[^/@]*)?(/[^@]*)?", url):
        raise malformed
    try:
        _ = urlsplit(url).port
        return conninfo_to_dict(url)
    except (ValueError, psycopg.Error):
        raise malformed from None


def shown(parameters: dict[str, Any]) -> str:
    """The address without any password."""
    user = f"{parameters['user']}@" if "user" in parameters else ""
    port = f":{parameters['port']}" if "port" in parameters else ""
    host = parameters.get("host", "")
    return f"postgresql://{user}{host}{port}/{parameters.get('dbname', '')}"


def line(error: BaseException) -> str:
    return " ".join(str(error).split())
