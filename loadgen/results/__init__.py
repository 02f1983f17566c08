"""The record of each request, and what is measured on it."""
