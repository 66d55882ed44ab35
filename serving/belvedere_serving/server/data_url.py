"""Pictures in requests that are text alone: base64, as a data URL or plain. Addresses are refused."""

from __future__ import annotations

import base64
import binascii

from belvedere_platform.protocol import invalid


def picture_of(where: str, url: str) -> bytes:
    """Return the bytes of a picture that is sent in base64, with or without `data:image/…;base64,` before it."""
    if url[:8].lower().startswith(("http://", "https://")):
        raise invalid(
            f"{where}: addresses are not fetched from here; send the picture itself, as data:image/png;base64,…"
        )
    head, comma, data = url.partition(",")
    if comma and not (head.startswith("data:image/") and head.endswith(";base64")):
        raise invalid(f"{where}: a picture must be a data URL with base64, data:image/png;base64,…")
    try:
        return base64.b64decode(data if comma else url, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{where}: the picture is not base64: {error}") from error
