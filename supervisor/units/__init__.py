"""Unit files: read, checked, and what they mean."""
