"""How good a model is: retrieval, classification, matching, captions, questions, and what its embeddings look like."""
