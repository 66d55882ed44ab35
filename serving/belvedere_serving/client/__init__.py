"""Clients of V2 servers."""

from belvedere_serving.client.v2 import Embedded, V2Client

__all__ = ["Embedded", "V2Client"]
