"""Writing text word by word: a paged cache, who is written when, which word is taken."""
