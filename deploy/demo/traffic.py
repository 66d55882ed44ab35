"""Steady V2 traffic from unmodified tritonclient, over gRPC and HTTP, with one line a request: traffic.py --help.

Commands on standard input: `rate N` (open loop, requests a second), `load N` (closed loop, N clients at once), end of file stops.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http

from belvedere_serving.triton.options import version_number

MAX_IN_FLIGHT = 64
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request to make: a V2 model and its one input value."""

    model: str
    value: bytes
    protocol: str


def requests(samples: Path, seed: int = 0) -> Iterator[Request]:
    """Yield requests for ever: texts (English and Chinese) and pictures of the held-out style, two of three over gRPC."""
    chooser = random.Random(seed)
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    for number in itertools.count():
        sample = chooser.choice(lines)
        protocol = "http" if number % 3 == 2 else "grpc"
        if chooser.random() < 0.6:
            yield Request(
                model="embed_text", value=chooser.choice([sample["en"], sample["zh"]]).encode(), protocol=protocol
            )
        else:
            yield Request(model="embed_image", value=bytes.fromhex(sample["png"]), protocol=protocol)


class Clients:
    """The two unmodified clients, on one address."""

    def __init__(self, address: str, versions: Sequence[str] = ()) -> None:
        # Triton knows versions by number.
        self.names = {str(version_number(name)): name for name in versions}
        self.grpc = triton_grpc.InferenceServerClient(address)
        self.http = triton_http.InferenceServerClient(address, conn_limit=MAX_IN_FLIGHT)

    async def infer(self, request: Request) -> tuple[str, str | None]:
        """Return the version that answered and the error, if any. Never raises for what the server said."""
        module: Any = triton_grpc if request.protocol == "grpc" else triton_http
        client: Any = self.grpc if request.protocol == "grpc" else self.http
        tensor = module.InferInput("TEXT" if request.model == "embed_text" else "IMAGE", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([request.value], dtype=np.object_))
        try:
            result = await asyncio.wait_for(client.infer(request.model, [tensor]), TIMEOUT_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever the client raises is what a user would have seen
            return _version_of(error), f"{type(error).__name__}: {error}"
        response = result.get_response()
        told: str = response["model_version"] if isinstance(response, dict) else response.model_version
        version = self.names.get(told, told)
        embedding = result.as_numpy("EMBEDDING")
        if embedding is None or not np.isfinite(embedding).all() or abs(float(np.linalg.norm(embedding)) - 1) > 1e-2:
            return version, "the embedding is not a finite unit vector"
        return version, None

    async def close(self) -> None:
        await self.grpc.close()
        await self.http.close()


def _version_of(error: BaseException) -> str:
    """Read the version from the answer's metadata, or from what the server said.

    tritonclient keeps the gRPC error as the context of its own; of an HTTP error it keeps the text alone.
    """
    for source in (error, error.__context__, error.__cause__):
        for method in ("initial_metadata", "trailing_metadata"):
            for key, value in getattr(source, method, lambda: ())() or ():
                if key == "belvedere-version":
                    return str(value)
    said = re.search(r"model '\w+' of (\S+) failed", str(error))
    return said.group(1) if said else ""


class Generator:
    """Sends requests at a rate or from a number of clients at once, never more than MAX_IN_FLIGHT."""

    def __init__(self, clients: Clients, source: Iterator[Request], output: TextIO) -> None:
        self.clients, self.source, self.output = clients, source, output
        self.rate, self.load = 0.0, 0
        self.in_flight: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        self.stopped = False

    async def one(self) -> None:
        request = next(self.source)
        begin, start = time.time(), time.perf_counter()
        version, error = await self.clients.infer(request)
        record = {
            "time": round(begin, 4),
            "seconds": round(time.perf_counter() - start, 5),
            "model": request.model,
            "protocol": request.protocol,
            "version": version,
        }
        self.output.write(json.dumps(record if error is None else record | {"error": error}, ensure_ascii=False) + "\n")

    def spawn(self) -> None:
        task = asyncio.create_task(self.one())
        self.in_flight.add(task)
        task.add_done_callback(self.in_flight.discard)

    async def run(self) -> None:
        due = time.perf_counter()
        while not self.stopped:
            if self.load:
                while len(self.in_flight) < self.load:
                    self.spawn()
                await asyncio.wait(self.in_flight, return_when=asyncio.FIRST_COMPLETED)
                due = time.perf_counter()
            elif self.rate:
                # A slow server must not make later requests arrive in a burst: what is overdue by a second is dropped.
                due = max(due + 1 / self.rate, time.perf_counter() - 1)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if len(self.in_flight) < MAX_IN_FLIGHT:
                    self.spawn()
            else:
                self.changed.clear()
                await self.changed.wait()
                due = time.perf_counter()
        if self.in_flight:
            await asyncio.wait(self.in_flight, timeout=TIMEOUT_SECONDS)

    def command(self, line: str) -> None:
        verb, _, number = line.strip().partition(" ")
        if verb == "rate":
            self.rate, self.load = float(number), 0
        elif verb == "load":
            self.rate, self.load = 0.0, min(int(number), MAX_IN_FLIGHT)
        else:
            raise ValueError(f"unknown command {line!r}: use 'rate N' or 'load N'")
        self.changed.set()


async def read_commands(generator: Generator) -> None:
    """Obey standard input until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        generator.command(line.decode())
    generator.stopped = True
    generator.changed.set()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="HOST:PORT of the gateway")
    parser.add_argument("--samples", type=Path, required=True, help="JSON lines with en, zh and png (hexadecimal)")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a request")
    parser.add_argument("--version", action="append", default=[], help="ModelVersion that may answer; once for each")
    arguments = parser.parse_args()
    clients = Clients(arguments.address, arguments.version)
    with arguments.output.open("w", buffering=1) as output:
        generator = Generator(clients, requests(arguments.samples), output)
        commands = asyncio.create_task(read_commands(generator))
        await generator.run()
        await commands
    await clients.close()


if __name__ == "__main__":
    asyncio.run(main())
