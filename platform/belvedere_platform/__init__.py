"""The words shared by every part: resources, store, artifacts, protocol, telemetry, command line."""
