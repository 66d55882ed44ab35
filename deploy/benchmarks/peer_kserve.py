"""The same engine in a model server of KServe's SDK. Usage: peer_kserve.py ENGINE PORT"""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from pathlib import Path
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

from peer_engine import Engine

engine = Engine(Path(sys.argv[1]))


class Embed(Model):  # type: ignore[misc]
    """One of the two towers."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        assert isinstance(payload, InferRequest)
        # The SDK reads BYTES as text (0.21 refuses what is not UTF-8), so pictures come to it in base64.
        elements = [base64.b64decode(element) for element in payload.inputs[0].as_numpy().tolist()]
        embeddings = await asyncio.to_thread(engine.run, self.name, elements)
        output = InferOutput(name="EMBEDDING", shape=list(embeddings.shape), datatype="FP32")
        output.set_data_from_numpy(embeddings, binary_data=True)
        return InferResponse(response_id="", model_name=self.name, infer_outputs=[output])


logging.getLogger("kserve").setLevel(logging.ERROR)
server = ModelServer(
    http_port=int(sys.argv[2]), enable_grpc=False, workers=1, enable_latency_logging=False, access_log_format=None
)
server.start([Embed("embed_text"), Embed("embed_image")])
