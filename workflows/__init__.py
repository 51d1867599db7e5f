"""Nipype workflows: graphs of the package's interfaces, one ``init_*_wf`` factory per idea."""
