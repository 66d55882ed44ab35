"""Names of children: the owner's name and a role, within what the kind allows. The same owner always gets the same name."""

from __future__ import annotations

import hashlib
import re

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# KubeRay appends to the name of a RayJob and refuses longer ones.
LONGEST_RAY_JOB = 47
# A Job's name becomes a label of its pods.
LONGEST_JOB = 63


def child_name(owner: str, role: str, *, longest: int) -> str:
    """Return `owner-role`, or a shortened and cleaned owner with a hash where that is too long or not a DNS label."""
    plain = f"{owner}-{role}"
    if len(plain) <= longest and _LABEL.fullmatch(plain):
        return plain
    mark = hashlib.sha256(owner.encode()).hexdigest()[:8]
    clean = re.sub(r"[^a-z0-9]+", "-", owner).strip("-")
    clean = clean if clean[:1].isalpha() else f"x{clean}"
    return f"{clean[: longest - len(role) - len(mark) - 2].rstrip('-')}-{mark}-{role}"
