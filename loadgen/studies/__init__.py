"""Many runs: planned as cells of a table, launched one by one, kept when finished."""
