"""TGI over the simulated engine."""
