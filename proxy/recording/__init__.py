"""A recording of the traffic, in the format of traces and without any text."""
