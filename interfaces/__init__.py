"""Nipype interfaces: thin, each checks its inputs, calls the ground floor and declares its outputs."""
