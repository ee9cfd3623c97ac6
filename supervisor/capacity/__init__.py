"""How many agents fit on a host, and which are let in."""
