"""How workflows are run: processes, clusters, caches."""
