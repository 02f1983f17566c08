"""What Prometheus sees: the table, the histograms and their registry."""
