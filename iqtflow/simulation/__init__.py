"""From a high-field scan to a simulated low-field one (Algorithm 1 of Lin et al. 2019)."""
