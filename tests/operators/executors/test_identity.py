"""Which processes belong to an installation, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid

from belvedere_operators.executors.identity import INSTANCE_VARIABLE, find_instance

FORGETFUL = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "60"], env={})
print(child.pid, flush=True)
child.wait()
"""


def test_a_process_that_lost_its_environment_belongs_to_who_started_it() -> None:
    instance = uuid.uuid4().hex[:8]
    parent = subprocess.Popen(
        [sys.executable, "-c", FORGETFUL],
        env=os.environ | {INSTANCE_VARIABLE: instance},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert {identity.pid for identity in find_instance(instance)} == {parent.pid, child}
        parent.kill()
        parent.wait()
        assert find_instance(instance) == set(), "without any carrier nobody can tell"
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()  # type: ignore[union-attr]
        os.kill(child, signal.SIGKILL)


def test_nobody_belongs_to_an_installation_that_does_not_run() -> None:
    assert find_instance(uuid.uuid4().hex[:8]) == set()
