"""`metering-proxy meter`: the energy of one command, by the proxy's sensors."""
