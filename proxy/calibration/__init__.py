"""Fitted constants outside the process: their JSON, their file, their command."""
