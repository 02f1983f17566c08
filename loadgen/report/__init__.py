"""Renders what `summary.json` has, in a terminal and as a page; computes nothing."""
