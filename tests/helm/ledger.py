"""What a user of an API server asked of it, as rights, and what was refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from belvedere_platform.store.kubernetes_transport import Transport

from .test_rights import Right


@dataclass
class Ledger:
    """What a user asked of the API server, and what was refused."""

    used: set[Right] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def note(self, method: str, path: str, query: Mapping[str, str], status: int) -> None:
        group, resource, named_one = self._resource(path)
        verb = {"PATCH": "patch", "DELETE": "delete", "GET": "get" if named_one else "list"}[method]
        verb = "watch" if query.get("watch") == "true" else verb
        if status == 403:
            self.refused.add(f"{verb} {path}")
            return
        self.used.add((group, resource, verb))
        if status == 201:  # server-side apply of what was not there
            self.used.add((group, resource, "create"))

    @staticmethod
    def _resource(path: str) -> tuple[str, str, bool]:
        parts = path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        if rest[0] == "namespaces" and len(rest) > 2:
            rest = rest[2:]
        return group, "/".join(rest[:1] + rest[2:]), len(rest) > 1


class Recording(Transport):
    """A connection that keeps a ledger."""

    def __init__(self, kubeconfig: Path, ledger: Ledger) -> None:
        super().__init__(kubeconfig=str(kubeconfig), context=None, environment={})
        self._ledger = ledger

    async def _send(self, method: str, path: str, query: Mapping[str, str], *more: Any) -> Any:
        response = await super()._send(method, path, query, *more)
        self._ledger.note(method, path, query, response.status)
        return response
