"""The V2 (Open Inference) protocol: words shared by the clients, the gateway and the model servers.

`messages` holds requests, answers and metadata; `http_messages` and `grpc_messages` put them on the wire and read them back.
Everything that parses raises `V2Error` and nothing else, whatever the bytes.
"""

from belvedere_platform.protocol.errors import Reason, V2Error, invalid
from belvedere_platform.protocol.messages import (
    ANSWER,
    ATTRIBUTION,
    CAPTION,
    EMBED_IMAGE,
    EMBED_TEXT,
    EMBEDDING,
    EXPLAIN,
    FINAL_RESPONSE,
    IMAGE,
    INPUT_OF,
    MATCH,
    SCORE,
    TEXT,
    WANTS_EMPTY_FINAL,
    InferRequest,
    InferResponse,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    TensorMetadata,
    embedding_metadata,
)
from belvedere_platform.protocol.tensors import BYTES, Tensor

__all__ = [
    "ANSWER",
    "ATTRIBUTION",
    "BYTES",
    "CAPTION",
    "EMBEDDING",
    "EMBED_IMAGE",
    "EMBED_TEXT",
    "EXPLAIN",
    "FINAL_RESPONSE",
    "IMAGE",
    "INPUT_OF",
    "MATCH",
    "SCORE",
    "TEXT",
    "WANTS_EMPTY_FINAL",
    "InferRequest",
    "InferResponse",
    "ModelMetadata",
    "Reason",
    "RequestedOutput",
    "ServerMetadata",
    "Tensor",
    "TensorMetadata",
    "V2Error",
    "embedding_metadata",
    "invalid",
]
