"""Readings to cumulative joules: device curves, their edges, and windows."""
