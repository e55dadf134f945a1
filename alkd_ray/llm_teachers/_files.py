"""OpenAI's ``/v1/files`` of the simulated endpoint: what batches read and write, in memory."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, web

from alkd_ray.llm_teachers._answers import RefusedError

LARGEST_UPLOAD_BYTES = 512 * 2**20
_CHUNK_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was uploaded, or that a batch wrote.

    Attributes:
        id: names it.
        name: as it was uploaded.
        purpose: ``batch`` or ``batch_output``.
        created_at: seconds since 1970, UTC.
        content: all of it.
    """

    id: str
    name: str
    purpose: str
    created_at: int
    content: bytes

    def described(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "expires_at": None,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """All files, oldest first; they are gone when the process ends."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}

    def routes(self) -> list[web.RouteDef]:
        """For aiohttp to serve."""
        return [
            web.post("/v1/files", self._upload),
            web.get("/v1/files", self._list),
            web.get("/v1/files/{id}", self._show),
            web.get("/v1/files/{id}/content", self._content),
            web.delete("/v1/files/{id}", self._delete),
        ]

    def add(self, name: str, purpose: str, content: bytes) -> StoredFile:
        """Keeps a file."""
        stored = StoredFile(f"file-{uuid.uuid4().hex}", name, purpose, int(time.time()), content)
        self._files[stored.id] = stored
        return stored

    def find(self, file_id: str) -> StoredFile | None:
        """The file with this id; None if there is none."""
        return self._files.get(file_id)

    def _named(self, request: web.Request) -> StoredFile:
        file_id = request.match_info["id"]
        stored = self.find(file_id)
        if stored is None:
            raise RefusedError(404, f"No such File object: {file_id}")
        return stored

    async def _upload(self, request: web.Request) -> web.Response:
        if request.content_type != "multipart/form-data":
            raise RefusedError(400, "A file is uploaded as multipart/form-data.")
        try:
            purpose, name, content = await _form_of(await request.multipart())
        except ValueError as error:
            raise RefusedError(400, f"The form cannot be read: {error}") from error
        if content is None:
            raise RefusedError(400, "'file' is a required property.")
        if purpose != "batch":
            raise RefusedError(400, f"'purpose' must be 'batch' here, not {purpose!r}.")
        return web.json_response(self.add(name, purpose, content).described())

    async def _list(self, request: web.Request) -> web.Response:
        purpose = request.query.get("purpose")
        newest_first = [
            stored.described()
            for stored in reversed(self._files.values())
            if purpose in (None, stored.purpose)
        ]
        order = request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise RefusedError(400, f"'order' must be 'asc' or 'desc', not {order!r}.")
        ordered = newest_first if order == "desc" else newest_first[::-1]
        return web.json_response(page(ordered, request.query, default=10_000, most=10_000))

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._named(request).described())

    async def _content(self, request: web.Request) -> web.Response:
        stored = self._named(request)
        return web.Response(body=stored.content, content_type="application/octet-stream")

    async def _delete(self, request: web.Request) -> web.Response:
        stored = self._named(request)
        del self._files[stored.id]
        return web.json_response({"id": stored.id, "object": "file", "deleted": True})


def page(
    objects: Sequence[Mapping[str, Any]], query: Mapping[str, str], *, default: int, most: int
) -> dict[str, Any]:
    """The part of a list that ``after`` and ``limit`` ask for, in OpenAI's shape.

    Args:
        objects: all of them, in order.
        query: the request's query.
        default: objects on a page when ``limit`` does not say.
        most: the largest ``limit``.

    Raises:
        RefusedError: ``limit`` or ``after`` cannot be used.
    """
    limit = query.get("limit", str(default))
    if not limit.isdecimal() or not 1 <= int(limit) <= most:
        raise RefusedError(400, f"'limit' must be a whole number from 1 to {most}, not {limit!r}.")
    start = 0
    if after := query.get("after"):
        places = [place for place, shown in enumerate(objects) if shown["id"] == after]
        if not places:
            raise RefusedError(400, f"'after' names no object of the list: {after}.")
        start = places[0] + 1
    shown = objects[start : start + int(limit)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + len(shown) < len(objects),
    }


async def _form_of(form: MultipartReader) -> tuple[str, str, bytes | None]:
    """Purpose, file name and content of an upload; other fields are read and ignored."""
    purpose, name, content = "", "", None
    # Part by part: the application's own limit, which is meant for chat, does not reach here.
    async for part in form:
        if not isinstance(part, BodyPartReader):
            raise ValueError("a part within a part")
        if part.name == "file":
            name, content = part.filename or "upload", await _read(part, LARGEST_UPLOAD_BYTES)
        else:
            value = await _read(part, _CHUNK_BYTES)
            purpose = value.decode(errors="replace") if part.name == "purpose" else purpose
    return purpose, name, content


async def _read(part: BodyPartReader, most_bytes: int) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        content += chunk
        if len(content) > most_bytes:
            raise RefusedError(413, f"'{part.name}' has more than {most_bytes} bytes.")
    return bytes(content)
