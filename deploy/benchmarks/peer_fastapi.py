"""The same engine in plain FastAPI: what somebody would write in an afternoon. Usage: peer_fastapi.py ENGINE PORT"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from peer_engine import Engine

app = FastAPI()
engine = Engine(Path(sys.argv[1]))


@app.get("/v2/health/ready")
def ready() -> None:
    return None


@app.post("/v2/models/{name}/infer")
async def infer(name: str, request: Request) -> Response:
    body = await request.body()
    length = int(request.headers["inference-header-content-length"])
    head, rest = json.loads(body[:length]), memoryview(body)[length:]
    elements, offset = [], 0
    for _ in range(head["inputs"][0]["shape"][0]):
        (size,) = struct.unpack_from("<I", rest, offset)
        elements.append(bytes(rest[offset + 4 : offset + 4 + size]))
        offset += 4 + size
    embeddings = await run_in_threadpool(engine.run, name, elements)
    raw = embeddings.tobytes()
    output = {
        "name": "EMBEDDING",
        "datatype": "FP32",
        "shape": list(embeddings.shape),
        "parameters": {"binary_data_size": len(raw)},
    }
    text = json.dumps({"model_name": name, "outputs": [output]}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    return Response(text + raw, media_type="application/octet-stream", headers=headers)


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
