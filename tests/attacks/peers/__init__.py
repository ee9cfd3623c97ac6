"""The attack battery in other sandboxes, each set up as strictly as its own manual offers: `python -m
tests.attacks.peers`."""
