"""Files of the simulated endpoint over real HTTP."""

from __future__ import annotations

from tests.simulated_batches import download, file_of, finish, form, upload
from tests.simulated_server import serving


def test_files_are_listed_shown_and_deleted() -> None:
    with serving() as server:
        ids = [upload(server, b"%d" % number).body["id"] for number in range(5)]
        listed = server.call("GET", "/v1/files").body
        assert [stored["id"] for stored in listed["data"]] == ids[::-1]
        assert listed["has_more"] is False
        page = server.call("GET", f"/v1/files?limit=2&order=asc&after={ids[1]}").body
        assert [stored["id"] for stored in page["data"]] == ids[2:4]
        assert (page["has_more"], page["last_id"]) == (True, ids[3])
        assert server.call("GET", "/v1/files?purpose=batch_output").body["data"] == []
        assert download(server, ids[4]) == b"4"
        gone = server.call("DELETE", f"/v1/files/{ids[4]}").body
        assert gone == {"id": ids[4], "object": "file", "deleted": True}
        assert server.call("GET", f"/v1/files/{ids[4]}").status == 404
        assert server.call("GET", f"/v1/files/{ids[4]}/content").status == 404
        assert server.call("DELETE", f"/v1/files/{ids[4]}").status == 404
        for query in ("limit=0", "limit=x", "order=up", "after=nothing"):
            assert server.call("GET", f"/v1/files?{query}").status == 400


def test_uploads_that_are_refused() -> None:
    with serving() as server:
        body, kind = form(b"text", purpose="fine-tune")
        no_file = (
            b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--edge--'
        )
        for sent, headers in (
            (body, {"Content-Type": kind}),
            (body, {"Content-Type": "application/json"}),
            (body, {"Content-Type": "multipart/form-data"}),
            (b"no form", {"Content-Type": kind}),
            (no_file, {"Content-Type": kind}),
        ):
            refused = server.call("POST", "/v1/files", sent, **headers)
            assert refused.status == 400
            assert refused.body["error"]["message"]
        assert server.call("GET", "/v1/files").body["data"] == []


def test_a_file_may_be_larger_than_a_chat_request() -> None:
    content = file_of(20) + b" " * (20 * 2**20) + b"\n"
    with serving() as server:
        uploaded = upload(server, content).body
        assert uploaded["bytes"] == len(content)
        assert download(server, uploaded["id"]) == content
        assert finish(server, content)["request_counts"]["completed"] == 20
