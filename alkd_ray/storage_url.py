"""Which URLs may name a storage of outputs."""

from __future__ import annotations

import urllib.parse

from alkd_ray.errors import InputError

# Scheme of a storage's URL -> what may stand after its "?"; pyarrow reads these.
STORAGE_PARAMETERS = {
    "file": (),
    "s3": ("endpoint_override", "region", "scheme", "tls_ca_file_path"),
    "gs": ("endpoint_override", "scheme"),
}


def checked_storage(url: str, where: str = "storage") -> str:
    """``url``, if it names a place for outputs that this program can use.

    Args:
        url: an absolute path, or a URL.
        where: what held it, for the message.

    Raises:
        InputError: it names none, or holds credentials. The message does not repeat it.
    """
    scheme, is_url, rest = url.partition("://")
    if not is_url and url.startswith("/"):
        return url
    allowed = STORAGE_PARAMETERS.get(scheme) if is_url else None
    if allowed is None:
        raise InputError(
            f"{where}: is neither an absolute path nor a URL that begins with file://, s3:// or "
            "gs://"
        )
    # Google's buckets that everybody may read are written so.
    rest = rest.removeprefix("anonymous@") if scheme == "gs" else rest
    place, _, query = rest.partition("?")
    bucket = place.split("/")[0]
    if "@" in urllib.parse.unquote(rest) or ":" in bucket:
        raise InputError(
            f"{where}: a URL here holds no credentials; they come from the environment, as the "
            "cloud's own tools read them"
        )
    if bool(bucket) == (scheme == "file"):
        form = "file:///folder" if scheme == "file" else f"{scheme}://bucket/prefix"
        raise InputError(f"{where}: is not of the form {form}")
    if not {part.partition("=")[0] for part in query.split("&") if part} <= set(allowed):
        raise InputError(
            f"{where}: after the ? of {scheme}:// may stand {', '.join(allowed) or 'nothing'}"
        )
    return url
