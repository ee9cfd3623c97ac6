"""What this host offers: kernel features, system calls, cgroups, directories."""
