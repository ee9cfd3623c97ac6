"""Directories that agents share, and what is done in them."""
