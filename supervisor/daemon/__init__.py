"""`osmoda-watch daemon`."""
