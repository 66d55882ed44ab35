"""Which parts of a picture speak for a text: how much the match falls when a part is hidden."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from belvedere_platform.protocol import ATTRIBUTION, InferRequest, InferResponse, Tensor
from belvedere_serving.server.heads import GRID, Array, MatchModel, paired
from belvedere_serving.server.timing import Timing

# G blocks along an edge, S picture edge


@dataclass(frozen=True, kw_only=True)
class ExplainModel(MatchModel):
    """Occlusion (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2): it asks the matching head alone and needs no gradient."""

    async def infer(self, request: InferRequest, deadline: float, timing: Timing) -> InferResponse:
        """Return [1, G, G]: the match of the whole picture less that with one block white."""
        (picture,), (text,) = self.inputs(request, deadline)
        with self.batcher.admitted(1, deadline):
            started = self.clock()
            tokens = self.preprocess([text])[0]
            pixels_3SS = await self.pictures.pixels(0, picture)
            timing.preprocess_seconds = self.clock() - started
            shown = hidden(pixels_3SS, self.pictures.blank())
            features = await self.pictures.encode(shown, deadline, timing)
            pairs = paired(features, [tokens] * len(features))
            scores = await self.batcher.submit(pairs, deadline, timing)
        falls = (scores[0] - scores[1:]).reshape(1, GRID, GRID)
        return self.answer(request, Tensor(ATTRIBUTION, "FP32", falls))


def hidden(pixels_3SS: Array, blank_3SS: Array) -> Array:
    """Return the picture as it is, then with each block white, row after row: [1 + G * G, 3, S, S]."""
    shown = np.repeat(pixels_3SS[np.newaxis], 1 + GRID * GRID, axis=0)
    edges = np.linspace(0, pixels_3SS.shape[1], GRID + 1).round().astype(int)
    for row in range(GRID):
        for column in range(GRID):
            block = (slice(edges[row], edges[row + 1]), slice(edges[column], edges[column + 1]))
            shown[1 + row * GRID + column][:, *block] = blank_3SS[:, *block]
    return shown
