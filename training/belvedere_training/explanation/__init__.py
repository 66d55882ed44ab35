"""Why a model thinks that a text belongs to a picture: attributions to places and words, and whether they can be believed."""
