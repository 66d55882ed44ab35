"""Are attributions complete, and do they name what the model looks at."""

from __future__ import annotations

from belvedere_platform.telemetry.benchmark import Row, result
from belvedere_training.explanation.study import pairs_of_split, study
from training_subject import Subject

NAMES = ("ig_completeness_error", "deletion_faithfulness")
NUM_PAIRS = 16


def rows(subject: Subject) -> list[Row]:
    """Explain held-out pairs by Integrated Gradients; LIME and SHAP stand in the note."""
    pairs = pairs_of_split(subject.data, "heldout_style", NUM_PAIRS)
    measures = study(subject.model, pairs, ("integrated-gradients", "lime", "kernel-shap"), samples=256).measures()
    gradients = measures["integrated-gradients"]
    others = ", ".join(
        f"{method}: {values['top_drop']:.3f} against {values['random_drop']:.3f}" for method, values in measures.items()
    )
    return [
        result(
            "ig_completeness_error",
            gradients["completeness_error"],
            "share",
            "lower",
            0.01,
            note=f"largest of {NUM_PAIRS} pairs",
        ),
        result(
            "deletion_faithfulness",
            gradients["top_drop"] / gradients["random_drop"],
            "x",
            "higher",
            1.0,
            own_value=gradients["top_drop"],
            peer="random tenth",
            peer_value=gradients["random_drop"],
            note=f"drop of the score without a tenth of the picture; named more than random in "
            f"{gradients['faithful_share']:.0%} of pairs; {others}",
        ),
    ]
