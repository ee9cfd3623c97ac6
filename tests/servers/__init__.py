"""The servers of the tests' internet (`tests/internet.py`): each runs as a program of its own."""
