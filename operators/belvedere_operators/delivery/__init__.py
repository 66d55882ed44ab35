"""Delivery: what a rollout knows, decides and shows. Pure: no input or output, no clock, no random numbers."""
