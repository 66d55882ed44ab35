"""Runs one plugin written in Python. Usage: runner.py FILE SOCKET MEMORY_MIB

FILE defines `before(request)`, `after(response)` or both: functions from a ModelInferRequest to one, and from a
ModelInferResponse to one. It is read after the process has been confined.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent import futures
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from belvedere_serving.plugins.confinement import confine
from belvedere_serving.plugins.settings import SERVICE

MESSAGES = {"before": pb.ModelInferRequest, "after": pb.ModelInferResponse}


def main() -> None:
    """Serve the plugin until the process is ended."""
    file, socket, memory_mib = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # The server reads one line here, and all that is said there.
    telling = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    confine(socket.parent, memory_mib << 20)
    spec = spec_from_file_location("plugin", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    handlers = {
        step.capitalize(): grpc.unary_unary_rpc_method_handler(_answer(getattr(module, step)), kind.FromString)
        for step, kind in MESSAGES.items()
        if hasattr(module, step)
    }
    if not handlers:
        raise SystemExit(f"{file.name} defines neither before(request) nor after(response)")
    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    with telling:
        print(" ".join(sorted(handlers)), file=telling)
    server.wait_for_termination()


def _answer(step: Callable[[Any], Any]) -> Callable[[Any, Any], bytes]:
    def answer(message: Any, context: Any) -> bytes:
        try:
            content: bytes = step(message).SerializeToString()
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:512])
        return content

    return answer


if __name__ == "__main__":
    main()
