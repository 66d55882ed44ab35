"""Steps before and after a model that somebody else wrote, each in a confined process of its own."""
