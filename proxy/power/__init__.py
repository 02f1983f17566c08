"""The power sources: `SOURCES` maps `--power` names to factories."""
