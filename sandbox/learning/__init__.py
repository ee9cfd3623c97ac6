"""`osmoda-sandbox learn`: a program observed in a permissive sandbox, and the least profile that it passes under."""
