"""Divides joules among requests: policies, and the constants they rest on."""
