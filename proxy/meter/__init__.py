"""Events in, settled records out: curves, activity, attribution, ledger. Pure."""
