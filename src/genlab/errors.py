"""The errors a user can meet, each with its exit code. A message says in one line what, where and what to do.

An exception of any other class is a fault of ours and keeps its traceback (exit code 1).
"""

from __future__ import annotations


class GenlabError(Exception):
    """Base of the expected errors. `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(GenlabError):
    """Wrong key, type, range or choice; a missing path that was asked for; a run that is in use."""

    exit_code = 2


class DataError(GenlabError):
    """Corrupt, truncated or unreadable data, or a hash that does not match."""

    exit_code = 65


class NumericError(GenlabError):
    """A loss or gradient that is not finite."""

    exit_code = 70


class StorageError(GenlabError):
    """A read or write that failed: disk full, permission, a vanished folder."""

    exit_code = 74


class CheckpointError(GenlabError):
    """A checkpoint that is truncated, altered, unsafe, or from another architecture."""

    exit_code = 76


class Interrupted(GenlabError):
    """Ctrl-C, after a save."""

    exit_code = 130


class Preempted(GenlabError):
    """SIGTERM or SIGUSR1, after a save."""

    exit_code = 143
