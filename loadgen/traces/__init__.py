"""Traces: what they say, how they are read, written, summarised and made."""
