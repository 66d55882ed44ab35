"""Tuning: the settings of a model server that answer most within a latency objective, found on the real server."""
