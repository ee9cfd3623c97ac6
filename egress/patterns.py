"""Patterns in which `*` stands for any text, also none and also with `/` in it: tools, topics, variables, URL paths.

All three questions are decided exactly: does a pattern match a text, does one cover another, can two match the same
text.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache(4096)
def covers(wide: str, narrow: str) -> bool:
    """Whether `wide` matches every text that `narrow` matches; a text without `*` is a pattern for itself.

    A `*` in `narrow` stands for texts that no literal of `wide` could match, so only a `*` of `wide` may take it.
    """
    reached = {0}  # positions of `wide` that a prefix of `narrow` can lead to
    for char in narrow:
        reached = _skip_stars(wide, reached)
        reached = {
            at if wide[at] == "*" else at + 1
            for at in reached
            if at < len(wide) and (wide[at] == "*" or (wide[at] == char and char != "*"))
        }
    return len(wide) in _skip_stars(wide, reached)


@lru_cache(4096)
def overlap(one: str, other: str) -> bool:
    """Whether some text matches both patterns."""
    pending = [(0, 0)]
    seen = set(pending)
    while pending:
        left, right = pending.pop()
        if left == len(one) and right == len(other):
            return True
        steps = []
        if left < len(one) and one[left] == "*":
            steps.append((left + 1, right))
            if right < len(other):
                steps.append((left, right + 1))
        if right < len(other) and other[right] == "*":
            steps.append((left, right + 1))
            if left < len(one):
                steps.append((left + 1, right))
        if left < len(one) and right < len(other) and one[left] == other[right]:
            steps.append((left + 1, right + 1))
        for step in steps:
            if step not in seen:
                seen.add(step)
                pending.append(step)
    return False


def _skip_stars(pattern: str, reached: set[int]) -> set[int]:
    """Add the positions behind stars: a star may stand for nothing."""
    closed = set(reached)
    for at, char in enumerate(pattern):
        if char == "*" and at in closed:
            closed.add(at + 1)
    return closed
