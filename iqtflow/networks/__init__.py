"""Networks that map thick-slice patches to isotropic ones."""
