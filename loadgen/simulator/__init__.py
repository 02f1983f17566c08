"""A continuous-batching engine and its GPU in virtual time, with known truth.

`engine` schedules, `roofline` says how long a step takes and what it costs,
`truth` divides that by the Shapley value, `sensor` shows what a GPU would show of
it, `driver` runs a list of requests through all of them. None of these touches
a socket or a clock; `server` is the only edge, and runs the same core in real
time. Every figure that comes from here is simulated and says so.
"""
