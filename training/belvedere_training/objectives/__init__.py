"""Training objectives: contrast between modalities, and compatibility with a parent model."""
