"""`metering-proxy meter`: the energy of one command, by the sensors of the proxy."""
