"""Issues of many rows: the first are named, the others counted."""

from __future__ import annotations

from collections import Counter

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


class Rejected:
    """Examples that the template rejects: dropped and counted, unless they are most of all."""

    def __init__(self) -> None:
        self._issues = IssueList()
        self._seen = set[int]()  # an example that its source's weight repeats is one issue
        self._examples = 0
        self._first: tuple[str, str] | None = None

    def add(self, where: str, reason: str) -> None:
        """Count an example, ``where`` being its file and row."""
        self._examples += 1
        self._first = self._first or (where, reason)
        if (known := hash((where, reason))) not in self._seen:
            self._seen.add(known)
            self._issues.add(Issue(where, reason))

    def check(self, split: str, examples: int) -> None:
        """Raise ``ConfigError`` if most ``examples`` of a split are rejected, naming the first ones."""
        if 2 * self._examples > examples:
            key = f"data ({split})"
            if examples > 1:
                message = f"the chat template rejects {self._examples} of {examples} examples"
                self._issues.shown.insert(0, Issue(key, message, "another one: template=chatml"))
            raise self._issues.error(key)

    def count_in(self, counts: Counter[str], first_seen: dict[str, str]) -> None:
        """Add their number to ``counts``, and the reason of the first as a warning with its place."""
        if self._first:
            where, reason = self._first
            counts["rejected by the template"] = counts[f"{reason} (dropped)"] = self._examples
            first_seen[f"{reason} (dropped)"] = where
