"""Commands that do the heavy work, each in a process of its own and each usable alone on plain NIfTI
files.
"""
