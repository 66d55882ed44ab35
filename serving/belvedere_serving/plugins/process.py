"""One plugin's process: started confined, called over gRPC, started again after it has died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import signal
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
END_SECONDS = 5.0
LONGEST_SECONDS = 86400.0
KEPT_BYTES = 2000
"""Of what a plugin says the last is kept, for when it dies."""
log = logging.getLogger(__name__)


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
        self._said = b""
        self._listening: asyncio.Task[None] | None = None
        self._turns: set[asyncio.Task[bytes]] = set()
        self._ended = False

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
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._said = b""
        self._listening = asyncio.create_task(self._listen(self._process.stderr))
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            await self._close(listen_on=True)
            said = self._said[-500:].decode(errors="replace").strip()
            raise Unavailable(f"plugin {self.name} did not start: {said or 'it said nothing'}")
        self._steps = frozenset(line.decode().split())
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        """Keep the last that it says. Unheard, it would stand still as soon as the pipe is full."""
        while some := await stream.read(1 << 16):
            self._said = (self._said + some)[-KEPT_BYTES:]

    async def call(self, step: str, message: bytes, seconds: float) -> bytes:
        """Return what the plugin makes of a message; the message itself when it has no such step. Raises V2Error.

        A caller who leaves, or has so many seconds no longer, leaves the plugin to what it is doing: that ends by the plugin's
        own limit, and others wait for their turn.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + min(max(0.0, seconds), LONGEST_SECONDS)
        try:
            async with asyncio.timeout_at(end):
                await self._lock.acquire()
        except TimeoutError as error:
            raise self._late() from error
        turn = asyncio.create_task(self._turn(step, message))
        self._turns.add(turn)
        turn.add_done_callback(self._turn_ended)
        done, _ = await asyncio.wait((turn,), timeout=max(0.0, end - loop.time()))
        if not done:
            raise self._late()
        return turn.result()

    def _turn_ended(self, turn: asyncio.Task[bytes]) -> None:
        self._turns.discard(turn)
        if not turn.cancelled():
            turn.exception()  # whoever left does not hear of it

    def _late(self) -> V2Error:
        return V2Error(Reason.DEADLINE_EXCEEDED, f"plugin '{self.name}' did not answer in time")

    async def _turn(self, step: str, message: bytes) -> bytes:
        """Ask the plugin and give the lock back."""
        try:
            if self._ended:
                raise V2Error(Reason.UNAVAILABLE, f"plugin '{self.name}' was just unloaded", retry_after_seconds=1)
            if self.pid is None:
                await self._again()
            return await self._ask(step, message) if step in self._steps else message
        finally:
            self._lock.release()

    async def _ask(self, step: str, message: bytes) -> bytes:
        try:
            self._allow_cpu()
        except (FileNotFoundError, ProcessLookupError):
            await self._again()  # it has just died
            self._allow_cpu()
        assert self._channel is not None
        limit = self.settings.timeout_seconds
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
            return self._late()
        what = "failed on"
        if code is grpc.StatusCode.UNAVAILABLE:
            what = "died on"
            await self.close()
            log.warning("plugin died", extra={"plugin": self.name, "said": self._said.decode(errors="replace")})
        return V2Error(Reason.INTERNAL, f"plugin '{self.name}' {what} this request ({step.lower()}): {said}")

    async def close(self) -> None:
        """End the process and forget it; a later call starts another."""
        await self._close()

    async def _close(self, *, listen_on: bool = False) -> None:
        """`listen_on`: hear what it said last, for no longer than it may take to end."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        process, self._process = self._process, None
        listening, self._listening = self._listening, None
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with what it started: that has its pipes too
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_SECONDS)
        if listening is not None:
            await asyncio.wait((listening,), timeout=END_SECONDS if listen_on else 0)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def retire(self) -> None:
        """End for good, after those who wait for their turn have had it."""
        async with self._lock:
            await self.end()

    async def end(self) -> None:
        """End for good and at once."""
        self._ended = True
        await self._close()
        self._calling.shutdown(wait=False)


def _environment() -> dict[str, str]:
    """Return what a plugin's process is told: nothing of the server's secrets."""
    kept: dict[str, Any] = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
