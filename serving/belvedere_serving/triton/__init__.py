"""Triton: from an engine to a model repository, and the server that reads it."""
