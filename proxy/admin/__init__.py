"""The admin API on its own port, and how commands ask it."""
