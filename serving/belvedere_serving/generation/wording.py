"""From tokens to text while it is written: nothing is given out that a later token could change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Wording:
    """The text so far. A character of several bytes is held back until its last token has come."""

    def __init__(self, words: Callable[[Sequence[int]], str]) -> None:
        """`words`: tokens to text, as the tokenizer decodes them."""
        self._words = words
        self._ids: list[int] = []
        self._given = 0

    def add(self, token: int | None, *, last: bool) -> str:
        """Return what a token adds to the text; the last one, if it is none, may still free what was held back."""
        if token is not None:
            self._ids.append(token)
        text = self._words(self._ids).strip()
        if not last:
            text = text.rstrip(_BROKEN).rstrip()
        added = text[self._given :]
        self._given = max(self._given, len(text))
        return added
