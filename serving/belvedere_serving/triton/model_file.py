"""The `model.py` of a repository: it finds our packages and takes the model's class from them."""

# Triton's Python backend embeds an interpreter that does not read PYTHONPATH.
_TEXT = """\
import os
import sys

sys.path += [root for root in os.environ.get("PYTHONPATH", "").split(os.pathsep) if root and root not in sys.path]

from belvedere_serving.triton.{module} import TritonPythonModel  # noqa: E402, F401
"""


def model_file(module: str) -> bytes:
    """Return the file for the model in this module of ours."""
    return _TEXT.format(module=module).encode()
