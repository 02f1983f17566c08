"""proxy: relays LLM requests untouched and says what each one cost in joules.

Bytes pass first, a copy is read after. Pure modules (`sse`, `engines`,
`timeline`, `energy`, `attribution`, `ledger`, `meter`) hold the arithmetic;
edges (`power`, `sampler`, `relay`, `metrics`, `admin`, `app`, `cli`) hold none.
Knows nothing about traces and never imports `loadgen`.
"""

__version__ = "0.1.0"
