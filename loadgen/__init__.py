"""loadgen: replays traces on time and measures latency.

It knows nothing about how energy is measured: joules come from the metering
proxy's admin API and are joined to requests by id, never by time.
"""

__version__ = "0.1.0"
