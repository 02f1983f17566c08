"""The engine's side of the relay: an upstream, its pool, its connections."""
