"""One run, from a command line to a finished run folder."""
