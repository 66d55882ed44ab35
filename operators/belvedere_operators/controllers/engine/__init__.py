"""Engine: a Job builds it once for its key, and what it measured decides whether it may serve."""
