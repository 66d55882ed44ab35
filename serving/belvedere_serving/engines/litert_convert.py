"""Converts an exported program to LiteRT. Run by the converter's own Python, which has none of our packages: litert_convert.py JSON."""

from __future__ import annotations

import json
import sys
from typing import Any


def main(given: dict[str, Any]) -> None:
    """Write the program as `target`, for inputs of one shape; in int8 its weights, and what they are multiplied with as it runs."""
    import litert_torch
    import torch

    program = torch.export.load(given["program"]).module()
    sample = torch.zeros(given["shape"], dtype=getattr(torch, given["datatype"]))
    litert_torch.convert(program, (sample,)).export(given["target"])
    if given["precision"] == "int8":
        from ai_edge_quantizer import quantizer, recipe

        small = quantizer.Quantizer(given["target"])
        small.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        small.quantize().export_model(given["target"], overwrite=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
