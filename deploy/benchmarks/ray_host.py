"""Our application on a Ray Serve of its own. Usage: ray_host.py JSON; prints its addresses, ends with its standard input."""

from __future__ import annotations

import json
import sys

import ray
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client

from belvedere_serving.server.app import build

given = json.loads(sys.argv[1])
ray.init(
    _temp_dir=given["temp"],
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=100_000_000,
    log_to_driver=False,
    logging_level="ERROR",
)
servicers = ["belvedere_serving.server.grpc_service.add_to_server"]
serve.start(
    http_options={"host": "127.0.0.1", "port": given["http"]},
    grpc_options=gRPCOptions(port=given["grpc"], grpc_servicer_functions=servicers),
)
serve.run(build(given["arguments"]), name="bench", route_prefix="/")
groups = ray.get(_get_global_client()._controller.get_target_groups.remote())
print(json.dumps({str(group.protocol.value).lower(): group.targets[0].port for group in groups}), flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
