"""The engine of a host without systemd: it runs what `lifecycle` decides."""
