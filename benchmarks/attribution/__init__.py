"""How wrong is a request's energy? Loads, engines, what a proxy sees of them, errors.

`scenarios` names the runs, `load` draws their requests, `board` and `engine` compute
them on a model that the meter does not share, `sight` says what of it reaches the
meter, `errors` compares the records with the truth.
"""
