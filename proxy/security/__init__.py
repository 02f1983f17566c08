"""Secrets, TLS, and texts without a secret in them."""
