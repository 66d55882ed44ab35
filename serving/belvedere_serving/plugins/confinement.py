"""Takes from this process, for good, what a plugin has no need of: the network, every write to files, and boundless memory."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_RULE_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
# include/uapi/linux/landlock.h: all that changes files, by the version that brought it.
_WRITE_FILE, _MAKE_SOCKET = 1 << 1, 1 << 9
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_CHANGES_SINCE = {2: 1 << 13, 3: 1 << 14}
_ABSTRACT_SOCKETS_AND_SIGNALS_SINCE = 6


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def confine(sockets: Path, memory_bytes: int) -> None:
    """Confine this process, which must have one thread yet, and its children. In `sockets` it may make sockets, nothing else.

    Raises OSError where the kernel cannot: a plugin that is not confined is not run.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    # A network of its own, with nothing in it. Who may not make one alone gets it with a user namespace.
    if libc.unshare(_NEW_NET) != 0:
        _check(libc.unshare(_NEW_USER | _NEW_NET), "a network namespace")
    _forbid_changes(libc, sockets)
    # Not the address space: allocators and threads reserve far more of it than they ever use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _forbid_changes(libc: ctypes.CDLL, sockets: Path) -> None:
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    _check(version, "Landlock")
    handled = _CHANGES | sum(bit for since, bit in _CHANGES_SINCE.items() if version >= since)
    scoped = 3 if version >= _ABSTRACT_SOCKETS_AND_SIGNALS_SINCE else 0
    ruleset = _Ruleset(handled, 0, scoped)
    size = ctypes.sizeof(ruleset) if scoped else 8
    rules = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(ruleset), size, 0)
    _check(rules, "Landlock")
    folder = os.open(sockets, os.O_PATH)
    try:
        rule = _PathBeneath(_MAKE_SOCKET, folder)
        _check(libc.syscall(_LANDLOCK_ADD_RULE, rules, _RULE_PATH_BENEATH, ctypes.byref(rule), 0), "Landlock")
        _check(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "Landlock")
    finally:
        os.close(folder)
        os.close(rules)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"this kernel does not give {what}: {os.strerror(number)}")
