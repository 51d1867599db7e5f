"""Pages that people look at, and what a run tells on the terminal."""
