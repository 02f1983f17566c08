"""Closing the books: which window is final, and where its joules go."""
