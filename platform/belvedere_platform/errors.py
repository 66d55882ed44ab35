"""The errors a user can meet, each with its exit code.

BelvedereError            1
├── InvalidInput          2   a field, flag or file is wrong; says which, its value, what is allowed
├── NotFound              3   the named object, artifact or file does not exist
├── Conflict              4   someone else changed it first, or it exists already
├── Unavailable           5   a part we need does not answer: control plane, Ray, Prometheus, a port
├── Rejected              6   a gate said no: evaluation, parity, an aborted rollout
└── CorruptData           7   bytes do not match their digest, or storage is full
"""

from __future__ import annotations


class BelvedereError(Exception):
    """Base of every error that is reported to a user as one sentence."""

    exit_code = 1


class InvalidInput(BelvedereError):
    """A field, flag or file has a value that is not allowed."""

    exit_code = 2


class NotFound(BelvedereError):
    """The named object, artifact or file does not exist."""

    exit_code = 3


class Conflict(BelvedereError):
    """The object was changed by someone else, or exists already."""

    exit_code = 4


class Gone(Conflict):
    """The resource version asked for is older than the history that is kept; list again."""


class Unavailable(BelvedereError):
    """A part that is needed does not answer."""

    exit_code = 5


class NotInstalled(Unavailable):
    """The cluster does not know this kind of object: its resource definition is not installed."""


class Rejected(BelvedereError):
    """A gate refused: evaluation, parity or a rollout."""

    exit_code = 6


class CorruptData(BelvedereError):
    """Stored bytes do not match their digest, or could not be written whole."""

    exit_code = 7
