"""Asks a metering proxy for joules, and joins them to requests by id."""
