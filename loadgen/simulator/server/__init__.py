"""The simulator's edge: the pure core in real time, behind an engine's own API.

`runner` sleeps until each step's end and hands out its tokens, `streams` puts them
on the wire, `vllm` and `tgi` are the routes of the two dialects, `app` adds the
simulated GPU's readings and the known truth, and listens.
"""
