"""The accounts: where every joule went, and the record of each request."""
