"""Names of children fit their kind and never meet."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from belvedere_operators.manifests.naming import LONGEST_JOB, LONGEST_RAY_JOB, child_name

OWNERS = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", fullmatch=True)


def test_short_names_stay_readable() -> None:
    assert child_name("emoji-clip-v1", "1", longest=LONGEST_RAY_JOB) == "emoji-clip-v1-1"


@given(
    owner=OWNERS,
    role=st.sampled_from(["1", "12", "build-abcdef"]),
    longest=st.sampled_from([LONGEST_RAY_JOB, LONGEST_JOB]),
)
def test_names_are_labels_of_the_length_allowed(owner: str, role: str, longest: int) -> None:
    name = child_name(owner, role, longest=longest)
    assert len(name) <= longest
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert name.endswith(f"-{role}")


@given(st.lists(OWNERS, min_size=2, max_size=2, unique=True))
def test_two_owners_have_two_names(owners: list[str]) -> None:
    assert len({child_name(owner, "1", longest=LONGEST_RAY_JOB) for owner in owners}) == 2
