"""What the command runs."""
