"""Asks a server everything that KServe's own clients ask. Usage: kserve_client.py HTTP GRPC [--health]; prints what came as JSON.

Runs with the Python of the peers. `--health`: ask over HTTP too whether server and model are ready, which KServe reads from
the body of the answer; Triton's is empty.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

MODEL, TEXTS = "embed_text", (b"red", b"blue")


def request(*, binary: bool) -> Any:
    """Return a request for two texts."""
    given = InferInput("TEXT", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
    return InferRequest(MODEL, [given])


async def ask(http: str, grpc: str, *, health: bool) -> dict[str, Any]:
    """Return what both clients got."""
    seen: dict[str, Any] = {}
    rest, remote = InferenceRESTClient(RESTConfig(protocol="v2")), InferenceGRPCClient(grpc)
    base = f"http://{http}"
    if health:
        ready = rest.is_server_live(base), rest.is_server_ready(base), rest.is_model_ready(base, MODEL)
        seen["rest health"] = await asyncio.gather(*ready)
    for binary in (False, True):
        answer = await rest.infer(base, request(binary=binary), model_name=MODEL)
        seen[f"rest {'binary' if binary else 'json'}"] = answer.outputs[0].as_numpy().tolist()
    seen["grpc health"] = [
        await remote.is_server_live(),
        await remote.is_server_ready(),
        await remote.is_model_ready(MODEL),
    ]
    seen["grpc"] = (await remote.infer(request(binary=True))).outputs[0].as_numpy().tolist()
    await rest.close()
    await remote.close()
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], sys.argv[2], health="--health" in sys.argv))))
