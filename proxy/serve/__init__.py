"""`metering-proxy serve`: wiring, start and stop of a proxy before its engines."""
