"""Relays and their meter in processes of their own, and what one says to the other."""
