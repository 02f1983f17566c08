"""The serving port: one request in, upstream, bytes out verbatim.

    client -> client.connection -> exchange -> routing -> upstream.connection
                                     |  ^                        |
      bytes go back at once <--------+  +------------------------+
      (client.response)              |
                                     | a copy, with its stamp
                                     v
                                    tap -> engines -> meter (on a beat)

`exchange` is one request in progress, a state machine. `server` listens and beats;
`event_search` and `energy_trailer` are the two things that may change a reply: a
usage event that the relay asked for itself is taken out, the request's energy is put
in where that was asked for.

Built on protocols, not on a web framework: an aiohttp handler costs 21-26 us of
CPU per streamed chunk, and the chunks of every request pass through here.
"""
