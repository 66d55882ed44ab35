"""Find a kind by any of the names people use for it: TrainingRun, trainingrun, trainingruns, trun."""

from __future__ import annotations

from difflib import get_close_matches

from belvedere_platform.errors import InvalidInput
from belvedere_platform.store.kinds import KINDS, Kind


def names_of(kind: Kind) -> tuple[str, ...]:
    """Return every name of a kind, in lower case."""
    return (kind.kind.lower(), kind.plural, *kind.short_names)


def find_kind(word: str) -> Kind:
    """Return the kind that a word means. Raises InvalidInput with the nearest one."""
    wanted = word.lower().partition(".")[0]
    for kind in KINDS:
        if wanted in names_of(kind):
            return kind
    known = {name: kind for kind in KINDS for name in names_of(kind)}
    near = get_close_matches(wanted, known, n=1)
    if near:
        raise InvalidInput(f"{word!r} is not a kind; did you mean {known[near[0]].kind}?")
    raise InvalidInput(f"{word!r} is not a kind; known are {', '.join(kind.kind for kind in KINDS)}")


def parse_target(words: tuple[str, ...]) -> tuple[Kind, str]:
    """Return kind and name from `KIND NAME` or `KIND/NAME`."""
    parts = words[0].split("/", maxsplit=1) if len(words) == 1 else list(words)
    if len(parts) != 2 or not all(parts):
        raise InvalidInput(f"{' '.join(words)!r} must be KIND NAME or KIND/NAME, such as trainingrun/emoji-clip-v1")
    return find_kind(parts[0]), parts[1]


def parse_labels(selector: str | None) -> dict[str, str]:
    """Return the labels of `k=v,k2=v2`."""
    labels: dict[str, str] = {}
    for part in (selector or "").split(","):
        name, equals, value = part.strip().partition("=")
        if name and equals:
            labels[name] = value.removeprefix("=")
        elif part.strip():
            raise InvalidInput(f"--selector part {part!r} must be LABEL=VALUE")
    return labels
