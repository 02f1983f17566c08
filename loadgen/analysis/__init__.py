"""From records to the figures of a run. Pure."""
