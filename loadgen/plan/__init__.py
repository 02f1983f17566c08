"""Who is sent what and when, decided before the run."""
