"""Leader election by a Lease: of several control planes one works, and one that has lost the lease ends.

Like client-go's: whether a holder is alive is judged by how long its record has not changed on our own monotonic clock,
so clocks of different machines need not agree. A holder gives up before others may take over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, TypeVar

from belvedere_operators.runtime.clock import Clock
from belvedere_platform.errors import Conflict, NotFound, Unavailable
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import LEASE

log = logging.getLogger(__name__)

FIELD_MANAGER = "belvedere-leader-election"
NO_ANSWER = "no answer in time"
"""What a TimeoutError, which brings no words of its own, means."""

T = TypeVar("T")


class LeadershipLost(Unavailable):
    """Another control plane may lead now, so this one must not go on."""


@dataclass(frozen=True, kw_only=True)
class LeaseTimes:
    """How long what may take, in seconds: retry < renew < lease."""

    lease_seconds: int = 15
    """After so long without a renewal anyone may take over."""
    renew_seconds: float = 10
    """A holder that could not renew for so long stops."""
    retry_seconds: float = 2
    """Between two looks or renewals."""

    def __post_init__(self) -> None:
        assert 0 < self.retry_seconds < self.renew_seconds < self.lease_seconds, self


class LeaderElection:
    """One candidate for one lease. `identity` tells it from all others, over restarts too."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        times: LeaseTimes = LeaseTimes(),
        random: Random | None = None,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._times = times
        self._random = random or Random()
        self._seen: Manifest | None = None
        self._seen_at = 0.0

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, work while it is held, and give it back. Raises LeadershipLost after the work was cancelled."""
        await self.acquire()
        holding = asyncio.ensure_future(self.hold())
        working = asyncio.ensure_future(work())
        lost = False
        try:
            await asyncio.wait((holding, working), return_when=asyncio.FIRST_COMPLETED)
            lost = holding.done()
            await (holding if lost else working)
        finally:
            for task in (working, holding):
                task.cancel()
            await asyncio.gather(working, holding, return_exceptions=True)
            # Only now: whoever takes over must not meet work that is still going on.
            if not lost:
                await self.release()

    async def acquire(self) -> None:
        """Return when the lease is ours."""
        while not await self._acquired():
            await self._pause()
        log.info("leading", extra={"lease": self._name, "identity": self._identity})

    async def hold(self) -> None:
        """Renew the lease for ever. Raises LeadershipLost."""
        renewed = self._clock.monotonic()
        while True:
            await self._pause()
            left = self._times.renew_seconds - (self._clock.monotonic() - renewed)
            began = self._clock.monotonic()
            try:
                await self._within(left, self._renew())
            except LeadershipLost:
                raise
            except (Unavailable, TimeoutError) as error:
                cause = str(error) or NO_ANSWER
                log.warning("the lease %s was not renewed: %s", self._name, cause)
                if self._clock.monotonic() - renewed >= self._times.renew_seconds:
                    raise LeadershipLost(
                        f"the lease {self._namespace}/{self._name} could not be renewed for "
                        f"{self._times.renew_seconds:g} s: {cause}"
                    ) from error
            else:
                # From when we asked, not from when the answer came: others count from the write.
                renewed = began

    async def release(self) -> None:
        """Give the lease back, so that the next leader need not wait. One that cannot be given back runs out."""
        try:
            await self._within(self._times.renew_seconds, self._give_back())
        except (Conflict, NotFound, Unavailable, TimeoutError) as error:
            log.warning("the lease %s was not released: %s", self._name, str(error) or NO_ANSWER)

    async def _give_back(self) -> None:
        seen = await self._look()
        if seen is not None and _holder(seen) == self._identity:
            await self._write(seen, holder="")
            log.info("released", extra={"lease": self._name, "identity": self._identity})

    async def _acquired(self) -> bool:
        try:
            seen = await self._look()
            if seen is None:
                await self._create()
            elif _holder(seen) in ("", self._identity) or self._expired(seen):
                await self._write(seen, holder=self._identity)
            else:
                return False
        except Conflict:
            return False  # someone else was faster
        except Unavailable as error:
            log.warning("the lease %s cannot be read: %s", self._name, error)
            return False
        return True

    async def _renew(self) -> None:
        assert self._seen is not None
        try:
            await self._write(self._seen, holder=self._identity)
        except Conflict:
            # A label may have been put on it, or an earlier renewal arrived although its answer did not.
            seen = await self._look()
            if seen is None or _holder(seen) != self._identity:
                holder = "nobody" if seen is None else _holder(seen) or "nobody"
                raise LeadershipLost(f"the lease {self._namespace}/{self._name} is held by {holder}") from None
            await self._write(seen, holder=self._identity)

    async def _look(self) -> Manifest | None:
        try:
            self._see(await self._store.get(LEASE, self._name, self._namespace))
        except NotFound:
            self._seen = None
        return self._seen

    def _see(self, manifest: Manifest) -> None:
        version = manifest["metadata"]["resourceVersion"]
        if self._seen is None or self._seen["metadata"]["resourceVersion"] != version:
            self._seen_at = self._clock.monotonic()
        self._seen = manifest

    def _expired(self, seen: Manifest) -> bool:
        granted = seen.get("spec", {}).get("leaseDurationSeconds", self._times.lease_seconds)
        return self._clock.monotonic() - self._seen_at >= float(granted)

    async def _create(self) -> None:
        # Not forced and under a name of our own, so that of two who create it at once the second meets a conflict.
        manifest = self._manifest(None, holder=self._identity)
        self._see(
            await self._store.apply(manifest, field_manager=f"{FIELD_MANAGER}-{self._identity}"[:128], force=False)
        )

    async def _write(self, seen: Manifest, *, holder: str) -> None:
        self._see(await self._store.apply(self._manifest(seen, holder=holder), field_manager=FIELD_MANAGER))

    def _manifest(self, seen: Manifest | None, *, holder: str) -> Manifest:
        now = _micro_time(self._clock())
        before: dict[str, Any] = {} if seen is None else seen.get("spec", {})
        kept = seen is not None and _holder(seen) == holder
        transitions = int(before.get("leaseTransitions", 0))
        metadata: Manifest = {"name": self._name, "namespace": self._namespace}
        if seen is not None:
            metadata["resourceVersion"] = seen["metadata"]["resourceVersion"]
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self._times.lease_seconds,
                "acquireTime": before["acquireTime"] if kept and "acquireTime" in before else now,
                "renewTime": now,
                # Counted when someone takes it, not when it is given back.
                "leaseTransitions": transitions + (1 if seen is not None and holder and not kept else 0),
            },
        }

    async def _pause(self) -> None:
        # Candidates that started together should not ask together for ever.
        await self._clock.sleep(self._times.retry_seconds * self._random.uniform(0.8, 1.2))

    async def _within(self, seconds: float, call: Awaitable[T]) -> T:
        """Return what the call gives. Raises TimeoutError when the clock has gone on so far before."""
        calling = asyncio.ensure_future(call)
        waiting = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((calling, waiting), return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return await calling
            raise TimeoutError
        finally:
            for task in (calling, waiting):
                task.cancel()
            await asyncio.gather(calling, waiting, return_exceptions=True)


def _holder(manifest: Manifest) -> str:
    return str(manifest.get("spec", {}).get("holderIdentity") or "")


def _micro_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
