"""A controller that is killed between any two writes ends where an undisturbed one does."""

from __future__ import annotations

from typing import Any

import pytest

from belvedere_platform.store import Manifest


class Killed(BaseException):
    """The process is gone. Not an Exception: nothing may catch it."""


class DyingStore:
    """Passes everything on, and dies at one write: before it reaches the store, or right after."""

    def __init__(self, inner: Any, *, at_write: int, after: bool) -> None:
        self._inner = inner
        self._left = at_write
        self._after = after

    async def get(self, *given: Any, **named: Any) -> Manifest:
        return await self._inner.get(*given, **named)

    async def list(self, *given: Any, **named: Any) -> Any:
        return await self._inner.list(*given, **named)

    async def apply(self, *given: Any, **named: Any) -> Any:
        return await self._write(self._inner.apply, given, named)

    async def apply_status(self, *given: Any, **named: Any) -> Any:
        return await self._write(self._inner.apply_status, given, named)

    async def delete(self, *given: Any, **named: Any) -> Any:
        return await self._write(self._inner.delete, given, named)

    async def _write(self, call: Any, given: Any, named: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed
        done = await call(*given, **named)
        if self._left == 0:
            raise Killed
        return done


async def reconcile_killed_at_every_write(world: Any, after: bool) -> int:
    """Reconcile until one attempt survives; attempt n dies at its n-th write. Return how many died."""
    real = world.store
    for attempt in range(1, 100):
        world.use(DyingStore(real, at_write=attempt, after=after))
        try:
            await world.reconcile()
        except Killed:
            continue
        finally:
            world.use(real)
        return attempt - 1
    raise AssertionError("a reconcile makes more than 100 writes")


async def roll(world: Any, *, error_rate: float, killed: bool, after: bool) -> tuple[dict[str, Any], int]:
    """Roll out v2 for a while and return everything that is left, and how many processes died."""
    await world.add_version("v1")
    await world.ask("v1")
    await world.reconcile()
    await world.run(4)
    await world.add_version("v2")
    world.traffic.behaviour["v2"].error_rate = error_rate
    await world.ask("v2")
    deaths = 0
    for _ in range(70):
        await world.settle_replicas()
        route = await world.route()
        world.traffic.flow(route, 1.0)
        await world.clock.advance(1.0)
        if killed:
            deaths += await reconcile_killed_at_every_write(world, after)
        else:
            await world.reconcile()
    journal = await world.journal()
    end = {
        "route": await world.route(),
        "running": await world.running(),
        "decisions": journal["decisions"],
        "rollout": journal["rollout"],
        "stable": journal["stable"],
        "status": {name: value for name, value in (await world.status()).items() if name != "conditions"},
    }
    return end, deaths


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error_rate", [0.0, 0.3], ids=["good", "failing"])
@pytest.mark.slow
async def test_killed_between_any_two_writes(make_world, error_rate, after):
    undisturbed, _ = await roll(await make_world(), error_rate=error_rate, killed=False, after=after)
    killed, deaths = await roll(await make_world(), error_rate=error_rate, killed=True, after=after)
    assert deaths > 100
    assert undisturbed["rollout"]["phase"] == ("Aborted" if error_rate else "Promoted")
    assert killed == undisturbed
