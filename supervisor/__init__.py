"""osmoda-watch: agents as units, supervised at their tier."""
