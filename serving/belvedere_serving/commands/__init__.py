"""Console commands of the serving package."""
