"""The trained models that ship with the package, and their index."""
