"""The control plane: controllers, executors and the delivery decisions."""
