"""Text that others wrote (names of files, of programs), made harmless to print."""

from __future__ import annotations


def clean(text: str) -> str:
    """`text` with each character that a terminal would act on, or not show, in Python's escaped form."""
    return "".join([char if char.isprintable() else repr(char)[1:-1] for char in text])
