"""Metrics for Prometheus: the table, the histograms and their registry."""
