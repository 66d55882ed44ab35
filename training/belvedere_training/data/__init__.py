"""From npm packages to WebDataset shards, and from shards to batches."""
