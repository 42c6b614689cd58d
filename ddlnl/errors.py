"""What a caller is told: refusals of bad input, and why work that began could not be finished."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the caller gave cannot be used; the message is one sentence that also says what is allowed."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the sentence, without the frames of a mistake that is not in the code."""
        return [f"InputError: {self}"]


class Unfinished(RuntimeError):
    """Work that began cannot be finished, for a reason that is not a mistake in the code; the message names it."""


class CellFailed(Unfinished):
    """A cell of a study could not be computed; the message names it and says why."""


class DamagedError(Unfinished):
    """A stored artefact does not match its checksum; the message names the file."""


def reason(error: Exception) -> str:
    """What went wrong with something that came from outside, as a part of a sentence of bounded length."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")[:300]


def nearest(name: object, allowed: Iterable[str]) -> str:
    """`" Did you mean 'ipc'?"` for the closest allowed name, or an empty string where nothing is close."""
    close = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
