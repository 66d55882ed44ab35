"""`belvedere rollout`: see, steer and read back the rollouts of a ModelService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from belvedere_platform.cli.options import (
    namespace_option,
    object_store,
    output_option,
    run,
    store_option,
    verbose_option,
)

if TYPE_CHECKING:
    from belvedere_operators.delivery.rollout import Verb
    from belvedere_platform.store import Manifest, ObjectStore


@click.group()
def rollout() -> None:
    """See and steer how a ModelService replaces one version by another."""


@rollout.command()
@click.argument("service")
@click.option("-w", "--watch", is_flag=True, help="Go on until the rollout ends; then 6 if it was aborted.")
@namespace_option
@output_option("table", "wide", "json", "yaml")
@store_option
@verbose_option
def status(service: str, watch: bool, namespace: str, output: str) -> None:
    """Show weight, evidence, replicas, latency and the last decisions."""
    from belvedere_operators.commands.rollout_view import ended_badly, follow, show

    async def work() -> Manifest:
        async with object_store() as store:
            manifest = await _service(store, service, namespace)
            if watch:
                return await follow(store, manifest, output)
            show(manifest, output)
            return manifest

    last = run(work())
    if watch and ended_badly(last):
        raise click.exceptions.Exit(6)


@rollout.command()
@click.argument("service")
@namespace_option
@output_option("table", "wide", "json", "yaml")
@store_option
@verbose_option
def history(service: str, namespace: str, output: str) -> None:
    """List every decision that is kept, with its reason and its evidence."""
    from belvedere_operators.commands.rollout_view import decisions_of, show_history

    async def work() -> list[dict[str, Any]]:
        async with object_store() as store:
            return await decisions_of(store, await _service(store, service, namespace))

    show_history(service, run(work()), output)


@rollout.command()
@click.argument("service")
@namespace_option
@store_option
@verbose_option
def pause(service: str, namespace: str) -> None:
    """Keep the present share until `resume`; a harmful candidate is still taken away."""
    run(_pause(service, namespace, paused=True))
    click.echo(f"the rollout of {namespace}/{service} is paused; `belvedere rollout resume {service}` goes on")


@rollout.command()
@click.argument("service")
@namespace_option
@store_option
@verbose_option
def resume(service: str, namespace: str) -> None:
    """Go on after a pause, and give a rollout that ran out of time its time again."""

    async def work() -> None:
        await _pause(service, namespace, paused=False)
        async with object_store() as store:
            from belvedere_operators.commands.rollout_request import ask

            manifest = await _service(store, service, namespace)
            await ask(store, manifest, "resume", candidate=_candidate(manifest))

    run(work())
    click.echo(f"the rollout of {namespace}/{service} goes on")


@rollout.command()
@click.argument("service")
@click.option("--timeout", "timeout_seconds", type=float, default=60.0, show_default=True, metavar="SECONDS")
@namespace_option
@store_option
@verbose_option
def promote(service: str, timeout_seconds: float, namespace: str) -> None:
    """Make the candidate the stable version now, whatever is proven."""
    _decide(service, namespace, "promote", timeout_seconds)


@rollout.command()
@click.argument("service")
@click.option("--timeout", "timeout_seconds", type=float, default=60.0, show_default=True, metavar="SECONDS")
@namespace_option
@store_option
@verbose_option
def abort(service: str, timeout_seconds: float, namespace: str) -> None:
    """Take the candidate's traffic away now; it is not tried again until the spec asks for something else."""
    _decide(service, namespace, "abort", timeout_seconds)


def _decide(service: str, namespace: str, verb: Verb, timeout_seconds: float) -> None:
    from belvedere_operators.commands.rollout_request import ask, wait_until_done
    from belvedere_platform.errors import InvalidInput

    async def work() -> str:
        async with object_store() as store:
            manifest = await _service(store, service, namespace)
            candidate = _candidate(manifest)
            if candidate is None:
                stable = manifest.get("status", {}).get("stable", {}).get("version", "nothing")
                raise InvalidInput(f"{namespace}/{service} has no rollout in progress to {verb}; {stable} serves")
            identity = await ask(store, manifest, verb, candidate=candidate)
            return await wait_until_done(store, manifest, verb, identity, timeout_seconds)

    click.echo(run(work()))


def _candidate(manifest: Manifest) -> str | None:
    candidate: str | None = (manifest.get("status", {}).get("candidate") or {}).get("version")
    return candidate


async def _pause(service: str, namespace: str, *, paused: bool) -> None:
    from belvedere_operators.commands.rollout_request import set_paused

    async with object_store() as store:
        await set_paused(store, await _service(store, service, namespace), paused=paused)


async def _service(store: ObjectStore, service: str, namespace: str) -> Manifest:
    from belvedere_platform.store.kinds import MODEL_SERVICE

    name = service.removeprefix("modelservice/").removeprefix("msvc/")
    return await store.get(MODEL_SERVICE, name, namespace)
