"""SafeSwitch: generations of agents, switched at once, kept on probation, and switched back by themselves.

`phases` decides, from events and times; `driver` does what it says. `store` holds generations, `record` what is on disk
about a switch, `verbs` what a command asks for.
"""
