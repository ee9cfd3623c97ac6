"""`osmoda-sandbox verify`: whether what a profile says is what the kernel enforces on this host.

`examine` has a profile attacked; `granted` makes probes of what it grants, `scene` holds the victims outside, `rounds`
runs the battery outside (`control`) and in a sandbox (`attacked`), `layers` tells what refused, `words` prints.
"""
