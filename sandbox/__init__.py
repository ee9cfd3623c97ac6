"""Profile to plan to running sandbox."""
