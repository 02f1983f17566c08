"""The pure core in real time.

`runner` sleeps until each step's end and hands out its tokens, `streams` puts them
on the wire.
"""
