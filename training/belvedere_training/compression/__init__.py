"""Smaller and faster models: pruning, int8, distillation; each with its size, latency and recall before and after."""
