"""SafeSwitch: generations of agents, switched at once, kept on probation, and switched back by themselves.

`phases` decides, from events and times; `live` does what it says, and `driver` has all that are live. `store` holds
generations, `record` what is on disk about a switch, `verbs` what a command asks for.
"""
