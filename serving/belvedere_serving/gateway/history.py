"""What was lately sent under which version: so that an Envoy that comes back is known by what it says it has."""

from __future__ import annotations

from collections import OrderedDict

from belvedere_serving.gateway.snapshot import CLUSTERS, ENDPOINTS, Resources, Snapshot, version_of

_NUM_VERSIONS = 16
"""Of each type. An Envoy finds its control plane within two seconds, so it has missed few."""


class History:
    """The last versions of each type, of all streams together."""

    def __init__(self) -> None:
        self._sent: dict[str, OrderedDict[str, Resources]] = {}
        self._doubted: OrderedDict[tuple[str, str], None] = OrderedDict()

    def note(self, type_url: str, version: str, resources: Resources) -> None:
        """Remember a version, and forget the one not used for longest."""
        versions = self._sent.setdefault(type_url, OrderedDict())
        versions[version] = resources
        versions.move_to_end(version)
        if len(versions) > _NUM_VERSIONS:
            versions.popitem(last=False)

    def recall(self, snapshot: Snapshot) -> None:
        """Remember a configuration that the process before this one told."""
        for type_url in (CLUSTERS, ENDPOINTS):
            resources = snapshot.of_type(type_url)
            self.note(type_url, version_of(resources), resources)

    def find(self, type_url: str, version: str) -> Resources | None:
        """Return the resources of a version: none at all for no version, None for one that is not known."""
        if not version:
            return {}
        return self._sent[type_url].get(version) if type_url in self._sent else None

    def doubt(self, type_url: str, version: str) -> None:
        """Remember that an Envoy with this version refused a newer one, of which it may have taken a part."""
        self._doubted[type_url, version] = None
        if len(self._doubted) > _NUM_VERSIONS:
            self._doubted.popitem(last=False)

    def doubts(self, type_url: str, version: str) -> bool:
        """Return whether an Envoy that comes back with this version may have something else."""
        return (type_url, version) in self._doubted
