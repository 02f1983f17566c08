"""Figures of a run, computed from its records. Pure."""
