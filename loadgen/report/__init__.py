"""From records to what a person sees.

`join` fetches the joules of each request from the proxy's admin API and is the
only module here that opens a socket; `tally`, `energy` and `summary` are pure;
`table` and `html` only draw what `summary.json` says.
"""
