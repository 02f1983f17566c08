"""New traces with the statistics of old ones."""
