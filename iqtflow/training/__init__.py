"""From patch libraries to weights."""
