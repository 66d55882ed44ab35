"""What every controller runs on: queue, caches, controller loop, conditions, events and time."""

from belvedere_operators.runtime.checks import Check, Failure, first_failure
from belvedere_operators.runtime.clock import Clock, FakeClock, SystemClock, parse_timestamp, timestamp
from belvedere_operators.runtime.conditions import find_condition, is_true, set_condition, set_from_failure
from belvedere_operators.runtime.controller import (
    After,
    Controller,
    Terminal,
    Watched,
    label_keys,
    own_key,
    owner_keys,
)
from belvedere_operators.runtime.copies import key_of
from belvedere_operators.runtime.events import EventRecorder
from belvedere_operators.runtime.queue import Key, WorkQueue
from belvedere_operators.runtime.reading import CachedStore, MeteredStore
from belvedere_operators.runtime.reflector import Caches, Reflector
from belvedere_operators.runtime.service import ControlPlane, Runnable

__all__ = [
    "After",
    "CachedStore",
    "Caches",
    "Check",
    "Clock",
    "ControlPlane",
    "Controller",
    "EventRecorder",
    "Failure",
    "FakeClock",
    "Key",
    "MeteredStore",
    "Reflector",
    "Runnable",
    "SystemClock",
    "Terminal",
    "Watched",
    "WorkQueue",
    "find_condition",
    "first_failure",
    "is_true",
    "key_of",
    "label_keys",
    "own_key",
    "owner_keys",
    "parse_timestamp",
    "set_condition",
    "set_from_failure",
    "timestamp",
]
