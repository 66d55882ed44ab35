"""Train the convolutional baseline on a data set that lies there, in a process of its own.

usage: baseline_run.py DATASET_FOLDER STATE_FOLDER PAIRS SECONDS

After SECONDS the state is saved and the program ends with status 3: the same command goes on. At the end the recalls and what the
run cost are in STATE_FOLDER/baseline.json.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

from baseline_model import VIEWS, Baseline, draw_caption, vocabulary_of
from belvedere_training.data.augmentation import views
from belvedere_training.data.corpus import Corpus, load_split
from belvedere_training.evaluation.retrieval import recall
from belvedere_training.model.config import HALF
from belvedere_training.model.normalization import normalise

BATCH, RATE, WARMUP_STEPS = 256, 1e-3, 100
SPLITS = ("heldout_style", "heldout_concepts", "hard_style")
CUT_OFF = 3
_KEEP_EVERY = 50
_SHARES = (0.5, 0.01)  # of the rate: the cosine's height, and what is left at its end


class Run:
    """A run at a position: everything that is drawn for a step depends on the position alone."""

    def __init__(self, folder: Path, state: Path, pairs: int) -> None:
        self.corpus, self.folder, self.state = load_split(folder, "train"), folder, state / "baseline.pt"
        self.num_steps = pairs // BATCH
        self.pictures = list(self.corpus.by_concept().values())
        torch.manual_seed(0)
        self.model = Baseline(vocabulary_of(self.corpus)).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
        self.step, self.cpu_seconds, self.half = 0, 0.0, False
        if self.state.exists():
            kept = torch.load(self.state, weights_only=True)
            self.step, self.cpu_seconds, self.half = kept["step"], kept["cpu_seconds"], kept["half"]
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
        else:
            self.half = self._seconds(half=True) < self._seconds(half=False)

    def _seconds(self, *, half: bool) -> float:
        """Return what forward and backward cost in a number format, the first time left out."""
        pixels_B3SS, tokens_BT = self._batch(0)
        for _ in range(2):
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = self.model.loss(pixels_B3SS, tokens_BT)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.zero_grad()
        return time.process_time() - began

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        choose, generator = random.Random(f"0/{step}"), torch.Generator().manual_seed(step)
        chosen = [choose.choice(positions) for positions in choose.sample(self.pictures, BATCH)]
        texts = [draw_caption(self.corpus.record(position), choose) for position in chosen]
        pixels_B3SS = views(self.corpus.pixels(chosen), generator, VIEWS, slice(0, BATCH), BATCH)
        return pixels_B3SS, self.model.tokens(texts)

    def go_on(self, seconds: float) -> bool:
        """Make steps for so long, and return whether all are made."""
        deadline, began, before = time.monotonic() + seconds, time.process_time(), self.cpu_seconds
        while self.step < self.num_steps and time.monotonic() < deadline:
            self._step()
            self.cpu_seconds = before + time.process_time() - began
            if self.step % _KEEP_EVERY == 0:
                self.keep()
        self.keep()
        return self.step >= self.num_steps

    def _step(self) -> None:
        done = self.step / self.num_steps
        share = min(1.0, self.step / WARMUP_STEPS) * (_SHARES[0] * (1 + math.cos(math.pi * done)) + _SHARES[1])
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * share
        pixels_B3SS, tokens_BT = self._batch(self.step)
        torch.manual_seed(self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            loss = self.model.loss(pixels_B3SS, tokens_BT)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        if self.step % _KEEP_EVERY == 0:
            print(f"  baseline: step {self.step} of {self.num_steps}, loss {loss.item():.3f}", flush=True)

    def keep(self) -> None:
        """Write the state, whole or not at all."""
        partial = self.state.with_suffix(".partial")
        state = {"step": self.step, "cpu_seconds": self.cpu_seconds, "half": self.half}
        torch.save({**state, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, partial)
        partial.replace(self.state)

    def finished(self) -> dict[str, Any]:
        """Return the recalls of all splits, and what the run cost."""
        self.model.eval()
        recalls: dict[str, float] = {}
        for split in SPLITS:
            corpus = load_split(self.folder, split)
            for language in ("en", "zh"):
                found = self._recall(corpus, language)
                recalls |= {f"{split}_{language}_r{cutoff}": value for cutoff, value in found.items()}
        return {
            "pairs": self.num_steps * BATCH,
            "cpu_seconds": self.cpu_seconds,
            "format": "bf16" if self.half else "fp32",
            "recall": recalls,
        }

    @torch.inference_mode()
    def _recall(self, corpus: Corpus, language: str) -> dict[int, float]:
        image_NE = torch.cat([self.model.embed_image(normalise(pixels, HALF)) for pixels in corpus.chunks(BATCH)])
        captions = corpus.captions(language)
        chunks = [captions[start : start + BATCH] for start in range(0, len(captions), BATCH)]
        text_NE = torch.cat([self.model.embed_text(self.model.tokens(chunk)) for chunk in chunks])
        return recall(text_NE @ image_NE.T)


def main() -> None:
    """Go on with the run, and write what it found when it is done."""
    folder, state, pairs, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(1)
    run = Run(folder, state, pairs)
    if not run.go_on(seconds):
        sys.exit(CUT_OFF)
    (state / "baseline.json").write_text(json.dumps(run.finished()))


if __name__ == "__main__":
    main()
