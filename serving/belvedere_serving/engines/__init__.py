"""Engines: a trained model compiled for a runtime, compared with its source, and timed."""
