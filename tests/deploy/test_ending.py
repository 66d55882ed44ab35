"""A benchmark that a limit ends leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "deploy" / "benchmarks"
PROGRAM = """
import asyncio, tempfile
from ending import end_in_order

end_in_order()
with tempfile.TemporaryDirectory(prefix="belvedere-ending-") as folder:
    print(folder, flush=True)
    asyncio.run(asyncio.sleep(600))
"""


def test_what_is_told_to_end_takes_its_folder_with_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=BENCHMARKS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stdout is not None
        folder = Path(running.stdout.readline().strip())
        assert folder.is_dir()
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 128 + signal.SIGTERM
    assert not folder.exists()
