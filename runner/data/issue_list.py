"""Issues of many rows: the first are named, the others counted."""

from __future__ import annotations

from runner.core.errors import ConfigError, Issue

SHOWN_ISSUES = 20


class IssueList:
    """The first ``SHOWN_ISSUES`` issues of those added, and the number of the others."""

    def __init__(self) -> None:
        self.shown: list[Issue] = []
        self.hidden = 0

    def __bool__(self) -> bool:
        return bool(self.shown)

    def add(self, *issues: Issue) -> None:
        """Append issues."""
        room = SHOWN_ISSUES - len(self.shown)
        self.shown += issues[:room]
        self.hidden += max(0, len(issues) - room)

    def extend(self, other: IssueList) -> None:
        """Append those of another list."""
        self.add(*other.shown)
        self.hidden += other.hidden

    def error(self, key: str) -> ConfigError:
        """The error that names them all; ``key`` is what the hidden ones are issues of."""
        more = [Issue(key, f"and {self.hidden} more issues like these")] if self.hidden else []
        return ConfigError([*self.shown, *more])
