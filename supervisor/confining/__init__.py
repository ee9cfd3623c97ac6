"""A unit to the sandbox that it runs in."""
