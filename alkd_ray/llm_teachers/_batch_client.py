"""Speaks OpenAI's batch API: files up, a batch started once, its state, its answers line by line.

No retries here, as in :mod:`alkd_ray.llm_teachers._client`. Only starting a batch costs money, so
only :meth:`BatchClient.create` raises :class:`OutcomeUnknownError`; whatever else fails can be done
again at no cost and raises :class:`NotBilledError`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx2
import openai

from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_results import (
    BatchLine,
    BatchStatus,
    cut,
    object_of,
    read_line,
    read_status,
    text_of,
)
from alkd_ray.llm_teachers._client import (
    GATEWAY_STATUS,
    NotBilledError,
    OutcomeUnknownError,
    api_key,
    root_cause,
    without_key,
)
from alkd_ray.llm_teachers._sdk_errors import never_sent, refused

LABEL = "alkd"  # the key of a batch's metadata that holds its label
_PAGE = 100  # batches asked for at once, the most that OpenAI gives


class BatchClient:
    """One endpoint's batches, through ``openai.AsyncOpenAI`` over aiohttp; its retries are off.

    Belongs to one event loop. Use as an async context manager.
    """

    def __init__(self, endpoint: Endpoint, connections: int = 8) -> None:
        """Prepares the connection pool; nothing is sent.

        Raises:
            InputError: the key's file cannot be read.
        """
        self.endpoint = endpoint
        self._key = api_key(endpoint)
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._sdk = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=httpx2.Timeout(endpoint.timeout_seconds, connect=30.0),
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )

    async def __aenter__(self) -> BatchClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sdk.close()

    async def upload(self, content: bytes, name: str) -> str:
        """Uploads a batch's input; a second upload is a second file, at no cost.

        Args:
            content: a JSON object on each line: ``custom_id``, ``method``, ``url``, ``body``.
            name: file name for the endpoint to show.

        Returns:
            the file's id.

        Raises:
            NotBilledError: it did not arrive, or was not taken.
        """
        with self._told("the upload"):
            response = await self._sdk.files.with_raw_response.create(
                file=(name, content), purpose="batch"
            )
            text = without_key(response.http_response.text, self._key)
        file_id = text_of(object_of(text).get("id"))
        if not file_id:
            raise NotBilledError(f"the upload was answered without a file's id: {cut(text)}")
        return file_id

    async def create(self, file_id: str, label: str) -> BatchStatus:
        """Starts a batch. From here on it costs money.

        Args:
            file_id: of the uploaded input.
            label: at most 512 characters, by which :meth:`find` finds the batch again.

        Raises:
            NotBilledError: refused or not sent; there is no batch.
            OutcomeUnknownError: there may be a batch, or will be after a while; :meth:`find` tells
                so only when it finds one.
        """
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {LABEL: label},
        }
        with self._told("the new batch", may_bill=True):
            response = await self._sdk.post("/batches", body=body, cast_to=httpx2.Response)
            text = without_key(response.text, self._key)
        status = read_status(object_of(text))
        if status is None:
            raise OutcomeUnknownError(f"the new batch was answered without its id: {cut(text)}")
        return status

    async def status(self, batch_id: str) -> BatchStatus:
        """How far a batch is.

        Raises:
            NotBilledError: the endpoint did not say; with ``status`` 404 it knows no such batch.
        """
        with self._told("the batch's status"):
            path = f"/batches/{quote(batch_id, safe='')}"
            response = await self._sdk.get(path, cast_to=httpx2.Response)
            text = without_key(response.text, self._key)
        status = read_status(object_of(text))
        if status is None:
            raise NotBilledError(f"the batch's status was answered with no batch: {cut(text)}")
        return status

    async def find(self, label: str, since: float) -> BatchStatus | None:
        """The newest batch with this label, if there is one.

        Args:
            label: as given to :meth:`create`.
            since: seconds since 1970 (UTC). The endpoint lists its newest first; the search ends at
                batches that it calls older, so leave room for a clock that differs from its.

        Raises:
            NotBilledError: the endpoint did not say.
        """
        after, seen = "", set[str]()
        while True:
            with self._told("the list of batches"):
                wanted = {"limit": str(_PAGE)} | ({"after": after} if after else {})
                response = await self._sdk.get(
                    "/batches", cast_to=httpx2.Response, options={"params": wanted}
                )
                text = without_key(response.text, self._key)
            page = object_of(text)
            listed = page.get("data")
            if not isinstance(listed, list):
                raise NotBilledError(f"the list of batches was answered with none: {cut(text)}")
            batches = [
                batch for batch in listed if isinstance(batch, dict) and text_of(batch.get("id"))
            ]
            for batch in batches:
                metadata = batch.get("metadata")
                if isinstance(metadata, dict) and metadata.get(LABEL) == label:
                    return read_status(batch)
            new = [batch["id"] for batch in batches if batch["id"] not in seen]
            # An endpoint that does not know "after" would show its first page for ever.
            if not new or page.get("has_more") is False or _is_older(batches[-1], since):
                return None
            seen.update(new)
            after = new[-1]

    async def lines(self, file_id: str) -> AsyncGenerator[BatchLine, None]:
        """Reads a file of results while it arrives; one line at a time is in memory.

        Whoever stops before the end closes the iterator (``contextlib.aclosing``).

        Raises:
            NotBilledError: it did not arrive, or broke off; the lines until then are good.
        """
        rest = b""
        with self._told("the file of results"):
            stream = self._sdk.files.with_streaming_response.content(file_id)
            async with stream as response:
                # Not by iter_lines: it also ends lines at characters that JSON texts may hold.
                async for chunk in response.iter_bytes():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        if line.strip():
                            yield self._line(line)
        if rest.strip():
            yield self._line(rest)

    async def cancel(self, batch_id: str) -> BatchStatus:
        """Ends a batch early; one that is over stays as it is. What was generated is billed.

        Raises:
            NotBilledError: the endpoint did not take it.
        """
        try:
            with self._told("the cancellation"):
                path = f"/batches/{quote(batch_id, safe='')}/cancel"
                response = await self._sdk.post(path, cast_to=httpx2.Response)
                text = without_key(response.text, self._key)
        except NotBilledError as error:
            if error.status not in (400, 409):
                raise
            status = await self.status(batch_id)
            if status.is_over or status.state == "finalizing":
                return status
            raise
        return read_status(object_of(text)) or await self.status(batch_id)

    async def delete(self, file_id: str) -> None:
        """Deletes a file; one that is not there is no error.

        Raises:
            NotBilledError: the endpoint did not take it.
        """
        try:
            with self._told("the deletion"):
                await self._sdk.delete(f"/files/{quote(file_id, safe='')}", cast_to=httpx2.Response)
        except NotBilledError as error:
            if error.status != 404:
                raise

    @contextmanager
    def _told(self, what: str, *, may_bill: bool = False) -> Iterator[None]:
        """Turns the errors of a call into those of this module.

        Args:
            what: the call, in words.
            may_bill: whether a call of which nobody knows the outcome may cost money.
        """
        try:
            yield
        except openai.APIStatusError as error:
            status = error.status_code
            # A batch is dear and easily found again: no failure within the endpoint is trusted.
            if may_bill and (status >= 500 or status in GATEWAY_STATUS):
                raise OutcomeUnknownError(
                    f"{what}: HTTP {status}; there may be one, perhaps later"
                ) from None
            if status in GATEWAY_STATUS:
                raise NotBilledError(
                    f"{what}: HTTP {status} from a gateway", status=status
                ) from None
            raise refused(error, self._key) from None
        except openai.APIConnectionError as error:
            if never_sent(error):
                said = f"no connection to {self.endpoint.base_url}: {root_cause(error, self._key)}"
                raise NotBilledError(said) from None
            raise _broken(what, root_cause(error, self._key), may_bill) from None
        except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            raise _broken(what, root_cause(error, self._key), may_bill) from None

    def _line(self, line: bytes) -> BatchLine:
        # Bytes that are no UTF-8 go through as they are: the reader says what is wrong with them.
        text = without_key(line.decode("utf-8", "surrogateescape"), self._key)
        return read_line(text.encode("utf-8", "surrogateescape"))


def _is_older(batch: Mapping[str, Any], since: float) -> bool:
    created = batch.get("created_at")
    return isinstance(created, int | float) and created < int(since)


def _broken(what: str, cause: str, may_bill: bool) -> Exception:
    said = f"{what}: the connection ended without a whole answer: {cause}"
    return OutcomeUnknownError(said) if may_bill else NotBilledError(said)
