"""How good a model is: retrieval recall on what was held out."""
