"""A continuous-batching engine and its GPU in virtual time. Pure."""
