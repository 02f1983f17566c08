"""Sends a plan on time: open loop between sessions, closed loop inside one."""
