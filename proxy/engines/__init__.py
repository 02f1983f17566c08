"""The wire dialects: `ENGINES` maps `--engine` names to them."""
