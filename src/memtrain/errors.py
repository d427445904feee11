"""The one error type a user sees: a clear sentence that names the file or key and the remedy."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an error says, its first line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UserError(Exception):
    """A mistake the user can mend. The CLI prints its text as one line and exits with status 2."""
