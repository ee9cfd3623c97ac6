"""How one service comes up, stays up and goes down: decided without processes and clocks. `health` asks outside."""
