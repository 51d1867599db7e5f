"""One volume and its geometry."""
