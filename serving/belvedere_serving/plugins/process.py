"""One plugin's process: started confined, called over gRPC, started again after it has died."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from belvedere_platform.errors import Unavailable
from belvedere_platform.protocol import Reason, V2Error
from belvedere_serving.plugins.settings import SERVICE, PluginSettings

START_SECONDS = 30.0


class PluginProcess:
    """A plugin that runs. Calls wait for each other, so that what one uses is known."""

    def __init__(self, name: str, code: Path, settings: PluginSettings) -> None:
        self.name, self.settings = name, settings
        self._code = code
        self._lock = asyncio.Lock()
        self._folder: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._channel: grpc.Channel | None = None
        # grpc.aio belongs to one event loop of a process, which is not ours alone; and calls wait for each other anyway.
        self._calling = ThreadPoolExecutor(1, thread_name_prefix=f"plugin {name}")
        self._steps: frozenset[str] = frozenset()

    @property
    def pid(self) -> int | None:
        """Return the process's id, if one runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process. Raises Unavailable with what it said when it does not come up."""
        self._folder = tempfile.mkdtemp(prefix="bv-plugin-")
        socket = Path(self._folder, "socket")
        words = ("-m", "belvedere_serving.plugins.runner", self._code, socket, str(self.settings.memory_mebibytes))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            env=_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            said = await self._said()
            await self.close()
            raise Unavailable(f"plugin {self.name} did not start: {said}")
        self._steps = frozenset(line.decode().split())
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)

    async def _said(self) -> str:
        assert self._process is not None
        assert self._process.stderr is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return (await self._process.stderr.read())[-500:].decode(errors="replace").strip() or "it said nothing"

    async def call(self, step: str, message: bytes, seconds: float) -> bytes:
        """Return what the plugin makes of a message; the message itself when it has no such step. Raises V2Error."""
        async with self._lock:
            if self.pid is None:
                await self._again()
            if step not in self._steps:
                return message
            try:
                self._allow_cpu()
            except (FileNotFoundError, ProcessLookupError):
                await self._again()  # it has just died
                self._allow_cpu()
            assert self._channel is not None
            limit = min(seconds, self.settings.timeout_seconds)
            ask = partial(self._channel.unary_unary(f"/{SERVICE}/{step}"), message, timeout=limit)
            try:
                answer: bytes = await asyncio.get_running_loop().run_in_executor(self._calling, ask)
            except grpc.RpcError as error:
                raise await self._problem(step, error) from error
            return answer

    async def _again(self) -> None:
        await self.close()
        try:
            await self.start()
        except Unavailable as error:
            raise V2Error(Reason.UNAVAILABLE, str(error)[:512], retry_after_seconds=1) from error

    def _allow_cpu(self) -> None:
        """Let the process use its seconds from now on. The kernel counts from its start."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        limit = int(used) + 1 + self.settings.cpu_seconds
        resource.prlimit(self._process.pid, resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))

    async def _problem(self, step: str, error: Any) -> V2Error:
        code, said = error.code(), (error.details() or "")[:256]
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return V2Error(Reason.INVALID_ARGUMENT, f"plugin '{self.name}': {said}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            # It may go on for ever, and others would wait for it.
            await self.close()
            return V2Error(Reason.DEADLINE_EXCEEDED, f"plugin '{self.name}' did not answer in time")
        what = "failed on"
        if code is grpc.StatusCode.UNAVAILABLE:
            what = "died on"
            await self.close()
        return V2Error(Reason.INTERNAL, f"plugin '{self.name}' {what} this request ({step.lower()}): {said}")

    async def close(self) -> None:
        """End the process and forget it; a later call starts another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.communicate()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _environment() -> dict[str, str]:
    """Return what a plugin's process is told: nothing of the server's secrets."""
    kept: dict[str, Any] = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
