"""The whole loop on one machine, told on the terminal: python deploy/demo --help (or `make demo`)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from tritonclient.utils import InferenceServerException

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import BelvedereError
from belvedere_platform.store import connect
from clearing import is_a_demos
from control import Control
from narration import Narrator
from report import write_report
from stage import BACKENDS, Demo
from story import CHAPTERS
from timeline import Timeline

ROOT = Path(__file__).resolve().parents[2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny training budgets, the same steps (make demo QUICK=1)"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave everything running at the end (make demo KEEP=1); `make down` stops it",
    )
    parser.add_argument(
        "--chaos",
        action="store_true",
        help="kill the control plane in the middle of the good rollout, and bring it back (make demo CHAOS=1)",
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "demo", help="where the report and the state go"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="rayServe",
        help="the model server (make demo BACKEND=triton)",
    )
    parser.add_argument("--port", type=int, default=8080, help="port of the gateway")
    parser.add_argument("--bench", type=Path, help="also write the figures as a benchmark to this file")
    return parser.parse_args()


async def tell(options: argparse.Namespace, console: Console) -> None:
    """Bring the control plane up, tell the chapters, write the report; leave nothing running unless told to keep it."""
    told = asyncio.current_task()
    assert told is not None
    # Whoever ends the demo by a limit sends SIGTERM; what it started must not outlive it then either.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.cancel)
    output: Path = options.output.resolve()
    home = output / "home"
    narrator = Narrator(console=console)
    environment = {
        "BELVEDERE_HOME": str(home),
        "BELVEDERE_STORE": f"sqlite:///{home}/store.db",
        "BELVEDERE_ARTIFACTS": f"file://{home}/artifacts",
    }
    os.environ.update(environment)
    async with AsyncExitStack() as stack:
        stack.push_async_exit(partial(take_down, home, narrator, options.keep))
        with narrator.chapter("Bring the control plane up"):
            await run_visibly(["belvedere", "up", "--home", str(home), "--gateway-port", str(options.port)], narrator)
        store = connect(environment["BELVEDERE_STORE"])
        stack.push_async_callback(store.close)
        demo = Demo(
            control=Control(home=home, store=store, narrator=narrator, environment=environment),
            artifacts=ArtifactStore(environment["BELVEDERE_ARTIFACTS"]),
            output=output,
            address=f"127.0.0.1:{options.port}",
            quick=options.quick,
            chaos=options.chaos,
            backend=options.backend,
            timeline=Timeline(store=store, name="emoji"),
        )
        recorder = asyncio.create_task(demo.timeline.record())
        stack.push_async_callback(lambda: cancelled(recorder, *demo.faulty.values()))
        await tell_chapters(demo, narrator, stack)
        with narrator.chapter("Report"):
            write_report(demo, narrator, options.bench)
    if options.keep:
        console.print(
            f"\nRunning: gateway http://127.0.0.1:{options.port}. Look around with\n"
            f"  export BELVEDERE_HOME={home}\n  belvedere get modelservices\n  belvedere rollout history emoji\n  belvedere lineage emoji\n"
            f"  belvedere infer text 'a red apple' --url http://127.0.0.1:{options.port}\nand stop it with  make down"
        )
    console.print(f"\nReport: {output / 'report.html'} and {output / 'report.json'}")


async def tell_chapters(demo: Demo, narrator: Narrator, stack: AsyncExitStack) -> None:
    """Tell one chapter after another. Traffic begins with the first samples to send, and ends with the stack."""
    for title, chapter in CHAPTERS:
        with narrator.chapter(title):
            await chapter(demo)
        if demo.traffic is None and demo.samples:
            demo.traffic = await start_traffic(demo)
            stack.push_async_callback(end_traffic, demo.traffic)
    demo.report["url"] = f"http://{demo.address}"
    demo.report["backend"] = demo.backend


async def take_down(
    home: Path, narrator: Narrator, keep: bool, failure: type[BaseException] | None, *_: object
) -> None:
    """Stop everything, unless it went well and is to be kept."""
    if failure is not None or not keep:
        await run_visibly(["belvedere", "down", "--home", str(home)], narrator)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def run_visibly(words: list[str], narrator: Narrator) -> None:
    """Run a command with its output on the terminal. Raises BelvedereError when it fails."""
    narrator.command(words)
    process = await asyncio.create_subprocess_exec(*words)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.send_signal(signal.SIGINT)
        await process.wait()
        raise
    if code:
        raise BelvedereError(f"`{' '.join(words)}` ended with exit code {code}")


async def start_traffic(demo: Demo) -> asyncio.subprocess.Process:
    """Start the client process; it sends nothing until told a rate."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parent / "traffic.py"),
        *(
            "--address",
            demo.address,
            "--samples",
            str(demo.output / "traffic-samples.jsonl"),
            "--output",
            str(demo.requests_file),
            *(word for name in demo.versions for word in ("--version", name)),
        ),
        stdin=asyncio.subprocess.PIPE,
    )


async def end_traffic(traffic: asyncio.subprocess.Process) -> None:
    """Let the client process finish what it asked for, for a while."""
    if traffic.returncode is not None:
        return
    assert traffic.stdin is not None
    traffic.stdin.close()
    try:
        await asyncio.wait_for(traffic.wait(), 15)
    except TimeoutError:
        traffic.kill()


def main() -> int:
    options = arguments()
    console = Console(highlight=False)
    os.chdir(ROOT)
    if (options.output / "home").exists():
        if not is_a_demos(options.output):
            console.print(f"[red]--output {options.output} has a folder `home` that no demo made: choose another[/]")
            return 2
        # What a demo that was killed left behind is stopped and cleared first: the story starts from nothing.
        subprocess.run(
            ["belvedere", "down", "--home", str(options.output / "home")],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        shutil.rmtree(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    runner = asyncio.Runner()
    try:
        with runner:
            runner.run(tell(options, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("[yellow]interrupted: everything was stopped[/]")
        return 130
    except (BelvedereError, InferenceServerException) as error:
        console.print(f"[red]{error}[/]")
        return error.exit_code if isinstance(error, BelvedereError) else 1
    console.print(f"[bold green]done in {time.monotonic() - begin:.0f} s[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
