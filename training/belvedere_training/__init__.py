"""The model, its objectives, data and training loop."""
