"""Our application, or several, on a Ray Serve of its own. Usage: ray_host.py JSON; see ray_application.py, which starts it.

Prints the ports of its replicas, and at each line of its standard input the states of the replicas; ends with its standard input.
"""

from __future__ import annotations

import json
import sys

import ray
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client

from belvedere_serving.server.app import INGRESS, build

given = json.loads(sys.argv[1])
ray.init(
    _temp_dir=given["temp"],
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=100_000_000,
    log_to_driver=False,
    logging_level="ERROR",
    _metrics_export_port=given["metrics"],
)
servicers = ["belvedere_serving.server.grpc_service.add_to_server"]
serve.start(
    http_options={"host": "127.0.0.1", "port": given["http"]},
    grpc_options=gRPCOptions(port=given["grpc"], grpc_servicer_functions=servicers),
)
for name, one in given["applications"].items():
    serve.run(build(one["arguments"]), name=name, route_prefix=one["prefix"])
ports: dict[str, dict[str, int]] = {name: {} for name in given["applications"]}
for group in ray.get(_get_global_client()._controller.get_target_groups.remote()):
    ports[group.app_name][str(group.protocol.value).lower()] = group.targets[0].port
print(json.dumps(ports), flush=True)
for line in sys.stdin:
    status = serve.status().applications[line.strip()].deployments[INGRESS]
    print(json.dumps({str(state): number for state, number in status.replica_states.items()}), flush=True)
serve.shutdown()
ray.shutdown()
