"""What people read: pages of subjects and data sets, lines on the terminal, text for manuscripts."""
