"""From a scan to its enhanced volume."""
