"""The one error type a user sees: a clear sentence that names the file or key and the remedy."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend. The CLI prints its text as one line and exits with status 2."""
