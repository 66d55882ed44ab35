"""The control plane of one machine: its home, its processes, how it starts, serves and stops."""
