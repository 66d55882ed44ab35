"""The verbs of `belvedere` that belong to the control plane."""
