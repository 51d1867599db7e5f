"""The options of ``iqtflow``, a file for each group of them; each has ``add_options(parser)``."""
