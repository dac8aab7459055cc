"""Numbers and times as text."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Such as ``0:07`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
