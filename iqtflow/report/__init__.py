"""Pages that people look at: one per subject, one per group."""
