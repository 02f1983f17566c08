"""Where records of finished requests are kept: memory, SQLite or PostgreSQL."""
