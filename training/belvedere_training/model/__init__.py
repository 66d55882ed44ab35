"""The model: towers behind one interface, the dual-stream encoder that joins them, its files and its exports."""
