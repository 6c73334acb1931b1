"""The time as the records write it."""

from datetime import UTC, datetime


def utc_now() -> str:
    """The present second in UTC as ISO 8601: ``2026-11-28T18:06:30Z``."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
