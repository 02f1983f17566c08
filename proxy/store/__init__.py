"""Records of finished requests in memory, SQLite or PostgreSQL, and saved fits."""
