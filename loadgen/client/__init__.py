"""One request to a server: its body, its connection, its reply."""
