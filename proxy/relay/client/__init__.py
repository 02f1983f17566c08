"""The client's side of the relay: its connection, its limits, its reply."""
