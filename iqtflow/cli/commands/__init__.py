"""Commands for plain NIfTI files. The interfaces run them in processes of their own."""
