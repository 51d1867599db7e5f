"""Brain masks and tissue maps."""
