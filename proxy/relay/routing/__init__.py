"""Whether a request passes, and to which upstreams in which order."""
