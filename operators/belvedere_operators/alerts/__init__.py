"""Alerts: the burn-rate rules of a ModelService, and the webhook that hears them."""
