"""A continuous-batching engine and its GPU in virtual time, with known truth.

In `core`, `engine` schedules, `roofline` says how long a step takes and what it
costs, `truth` divides that by the Shapley value, `sensor` shows what a GPU would show
of it, `driver` runs a list of requests through all of them. None of these touches
a socket or a clock. `vllm` and `tgi` are the dialects, `realtime` runs the same core
on the clock, `app` listens. Every figure that comes from here is simulated and says so.
"""
