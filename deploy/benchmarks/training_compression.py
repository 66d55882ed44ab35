"""How much of a large model's recall a small one keeps, and what pruning and int8 cost and bring."""

from __future__ import annotations

import os

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.compression.measure import Measured, compare
from belvedere_training.compression.run import CompressOptions, Way, compressed, study
from belvedere_training.data.corpus import load_split
from belvedere_training.model.files import load_artifact
from belvedere_training.recipe import train
from belvedere_training.world import LocalWorld
from training_subject import Subject, run_config

NAMES = ("distilled_r1_kept", "int8_static_r1_kept", "int8_dynamic_r1_kept", "pruned_r1_kept", "narrowed_r1_kept")
SPLIT = "heldout_style"
METRIC = f"{SPLIT}_en_r1"
TEACHER_PAIRS = int(os.environ.get("BELVEDERE_BENCH_TEACHER_PAIRS", "40000"))
STUDENT_PAIRS = int(os.environ.get("BELVEDERE_BENCH_STUDENT_PAIRS", "40000"))
LEARNING_RATE = 1e-3


def rows(subject: Subject) -> list[Row]:
    """Compress the model without training after it, then teach a nano model by a small one."""
    ways: tuple[Way, ...] = ("int8-static", "int8-dynamic", "prune", "channels")
    options = [CompressOptions(way=way, share=0.3) for way in ways]
    found, _ = study(subject.model, subject.data, options, split=SPLIT)
    before, after = found[0], {one.name: one for one in found[1:]}
    names: dict[Way, str] = {"int8-static": NAMES[1], "int8-dynamic": NAMES[2], "prune": NAMES[3], "channels": NAMES[4]}
    return [*(kept(names[way], before, after[way]) for way in ways), distilled(subject)]


def kept(name: str, before: Measured, after: Measured) -> Row:
    """Return the row of one way: recall kept, with bytes and latency before and after in the note."""
    note = (
        f"bytes {before.packed_bytes / 1e6:.1f} → {after.packed_bytes / 1e6:.1f} MB packed, "
        f"16 pictures {before.image_ms:.0f} → {after.image_ms:.0f} ms, 16 texts {before.text_ms:.1f} → {after.text_ms:.1f} ms"
    )
    value = after.recall[METRIC] / before.recall[METRIC]
    extra = {"own_value": after.recall[METRIC], "peer": "before", "peer_value": before.recall[METRIC]}
    return result(name, value, "share", "higher", 0.95, note=note, **extra)


def distilled(subject: Subject) -> Row:
    """Teach a nano model by a small one, that is trained first where none was given."""
    reference = subject.teacher
    if reference is None:
        config = run_config("bench-teacher", pairs=TEACHER_PAIRS, size="small")
        train(config, subject.store, LocalWorld())
        reference = config.output_tag
    teacher, pairs = load_artifact(subject.store, reference), subject.store.config(reference)["pairs"]
    corpus, check = load_split(subject.data, "train"), load_split(subject.data, SPLIT)
    options = CompressOptions(way="distil", pairs=STUDENT_PAIRS, learning_rate=LEARNING_RATE)
    student = compressed(teacher, corpus, options)
    before, after = compare({"small": teacher.model, "nano": student}, teacher.tokenizer, check)
    row = kept(NAMES[0], before, after)
    return row | {"note": f"{row['note']}; teacher {pairs} pairs, student {STUDENT_PAIRS}"}
