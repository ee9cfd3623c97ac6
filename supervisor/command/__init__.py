"""`osmoda-watch`: its grammar, its verbs, and what they print."""
