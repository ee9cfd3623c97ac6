"""The engine of a host with systemd, which starts and stops what osmoda confines."""
