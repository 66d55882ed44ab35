"""The object store protocol and its two implementations."""

from belvedere_platform.store.connect import connect
from belvedere_platform.store.kinds import KINDS, Kind
from belvedere_platform.store.protocol import Listing, Manifest, ObjectStore, WatchEvent

__all__ = ["KINDS", "Kind", "Listing", "Manifest", "ObjectStore", "WatchEvent", "connect"]
