"""The plugins of a server: those whose files are in a folder, loaded and unloaded while it serves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from belvedere_platform.errors import BelvedereError
from belvedere_platform.protocol import InferRequest, InferResponse
from belvedere_platform.protocol.grpc_messages import (
    parse_infer_request,
    parse_infer_response,
    render_infer_request,
    render_infer_response,
)
from belvedere_serving.plugins.process import PluginProcess
from belvedere_serving.plugins.settings import PluginSettings

LOOK_SECONDS = 1.0
Stamp = tuple[int, int]
log = logging.getLogger(__name__)


class Plugins:
    """Runs the steps of each plugin around the models it goes with, by their order, after the model in reverse.

    A step changes tensors; to whom they go, and with which parameters, stays as it was.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._running: dict[str, tuple[Stamp, PluginProcess]] = {}
        self._refused: dict[str, Stamp] = {}
        self._looked = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def before(self, request: InferRequest, deadline: float) -> InferRequest:
        """Return a request as the plugins would have it. Raises V2Error."""
        for plugin in await self._of(request.model_name):
            raw = render_infer_request(request).SerializeToString()
            changed = parse_infer_request(await plugin.call("Before", raw, deadline - self._clock()))
            request = replace(request, inputs=changed.inputs)
        return request

    async def after(self, response: InferResponse, deadline: float) -> InferResponse:
        """Return an answer as the plugins would have it. Raises V2Error."""
        for plugin in reversed(await self._of(response.model_name)):
            raw = render_infer_response(response).SerializeToString()
            changed = parse_infer_response(await plugin.call("After", raw, deadline - self._clock()))
            response = replace(response, outputs=changed.outputs)
        return response

    async def _of(self, model: str) -> list[PluginProcess]:
        """Return the plugins of a model. A look at the folder is begun when one is due; only the first is waited for."""
        if self._looking is None or (self._looking.done() and self._clock() - self._looked >= LOOK_SECONDS):
            first, self._looking = self._looking is None, asyncio.create_task(self.look())
            if first:
                await asyncio.shield(self._looking)
        plugins = (plugin for _, plugin in self._running.values())
        mine = [plugin for plugin in plugins if not plugin.settings.models or model in plugin.settings.models]
        return sorted(mine, key=lambda plugin: (plugin.settings.order, plugin.name))

    async def look(self) -> None:
        """Load what is new or changed, unload what is gone."""
        self._looked = self._clock()
        found = {file.stem: file for file in sorted(self._folder.glob("*.json"))}
        for name in set(self._running) - set(found):
            _, plugin = self._running.pop(name)
            await plugin.retire()
            log.info("plugin unloaded", extra={"plugin": name})
        for name, file in found.items():
            stamp = _stamp(file)
            known = self._running[name][0] if name in self._running else self._refused.get(name)
            if stamp != known:
                await self._load(name, file, stamp)

    async def _load(self, name: str, file: Path, stamp: Stamp) -> None:
        """Load a plugin; what ran by that name runs until the new one does. A broken one is told once and left out."""
        try:
            settings = PluginSettings.read(file)
            plugin = PluginProcess(name, self._folder / settings.code, settings)
            await plugin.start()
        except BelvedereError as error:
            self._refused[name] = stamp
            log.warning("plugin not loaded", extra={"plugin": name, "error": str(error)})
            return
        self._refused.pop(name, None)
        before = self._running.pop(name, None)
        self._running[name] = (stamp, plugin)
        if before is not None:
            await before[1].retire()
        log.info("plugin loaded", extra={"plugin": name})

    async def close(self) -> None:
        """End all."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for _, plugin in self._running.values():
            await plugin.end()
        self._running.clear()


def _stamp(file: Path) -> Stamp:
    """Return what changes when a plugin's file is written again. Its code is looked at when the file is."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
