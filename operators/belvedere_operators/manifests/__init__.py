"""The child manifests that controllers write, as pure functions."""
