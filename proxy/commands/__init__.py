"""Small commands that ask a running proxy."""
