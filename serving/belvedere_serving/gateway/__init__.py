"""The gateway: how requests find the replicas of a version, as Envoy is told, and what is compared beside the way."""
