"""The serving port: one request in, upstream, bytes out verbatim.

    client -> downstream.ClientConnection -> exchange.Exchange -> pool, upstream
                                                   |                 |
              bytes go back at once <--------------+-----------------+
                                                   | a copy, with its stamp
                                                   v
                                        tap.Tap -> engine -> meter (on a beat)

Built on protocols, not on a web framework: an aiohttp handler costs 21-26 us of
CPU per streamed chunk, and the chunks of every request pass through here.
`headers`, `replies`, `routes`, `labels`, `event_search`, `usage_filter` and
`energy_note` are pure.
"""
