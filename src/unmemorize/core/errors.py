"""Errors that a user can act on. The command line prints them as one line and exits with code 2."""

from __future__ import annotations


class UnmemorizeError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(UnmemorizeError):
    """A mistake in what was asked for: the message says what is wrong, where, and what to do."""


class Unfinished(UnmemorizeError):
    """A part of some work is done, and other parts are not: no mistake, and nothing to print but how far it is."""


class MissingExtra(UnmemorizeError):
    """An optional dependency is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f'{purpose} needs an optional dependency: pip install "unmemorize[{extra}]"')


class NotApplicable(UnmemorizeError):
    """A method does not apply to this model family or this data: reported as such, never as a pass."""
