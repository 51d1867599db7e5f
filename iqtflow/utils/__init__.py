"""What every room uses: errors, files, and the machine."""
