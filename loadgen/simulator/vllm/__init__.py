"""vLLM's OpenAI server over the simulated engine."""
