"""ModelVersion: Ready when its artifact is there and whole."""
