"""The figures of pages."""
