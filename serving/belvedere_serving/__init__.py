"""Engines, model servers and the gateway."""
