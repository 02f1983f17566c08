"""The bill of a run, for people: rendering only."""

from __future__ import annotations

from loadgen.analysis.bill import Bill
from loadgen.report import format as fmt
from loadgen.report.sheet import Sheet

LABELS = {
    "work": "work",
    "idle_share": "idle share",
    "idle": "idle",
    "unattributed": "unattributed",
    "host": "host",
    "overhead": "overhead",
}


def sheets(bill: Bill) -> list[Sheet]:
    """The stack of a request, then what it means in carbon and money."""
    total = ("total", fmt.joules(bill.joules_per_request), fmt.percent(1.0), "")
    stack = Sheet(
        f"{bill.run}: bill of {bill.requests:,} answered requests in "
        f"{fmt.seconds(bill.seconds)}",
        ("per request", "energy", "part", "what"),
        (
            *(
                (
                    LABELS[part.part],
                    fmt.joules(part.joules_per_request),
                    fmt.percent(part.fraction),
                    part.basis,
                )
                for part in bill.parts
            ),
            total,
        ),
        tuple(bill.notes),
        left=frozenset({0, 3}),
    )
    return [stack, _units(bill), _constants(bill)]


def _units(bill: Bill) -> Sheet:
    rows = [
        ("energy", *(fmt.joules(each) for each in _each(bill, bill.joules))),
        (
            "operational CO2e (O)",
            *(grams(each) for each in _each(bill, bill.operational_grams)),
        ),
        (
            "embodied CO2e (M)",
            *(grams(each) for each in _each(bill, bill.embodied_grams)),
        ),
    ]
    whole = None
    if bill.embodied_grams is not None:
        whole = bill.operational_grams + bill.embodied_grams
    rows.append(("SCI = (O + M) per R", *(grams(each) for each in _each(bill, whole))))
    if bill.price is not None:
        rows.append(
            (
                f"price in {bill.currency}",
                *(money(each) for each in _each(bill, bill.price)),
            )
        )
    reached = (
        f"{bill.goals:,} of {bill.sessions:,} sessions reached their goal (every turn "
        f"answered in the end); {bill.failed_requests:,} requests failed, "
        f"{bill.retried_requests:,} were tried again: all of it is in the figures"
    )
    notes = [reached]
    if bill.simulated:
        notes.append("SIMULATED: the joules come from a model, not from a machine")
    return Sheet(
        "everything above over each unit (R)",
        ("", "request", "output token", "session", "goal"),
        tuple(rows),
        tuple(notes),
    )


def _each(bill: Bill, amount: float | None) -> tuple[float | None, ...]:
    units = (bill.requests, bill.output_tokens, bill.sessions, bill.goals)
    return tuple(
        amount / unit if amount is not None and unit else None for unit in units
    )


def _constants(bill: Bill) -> Sheet:
    return Sheet(
        "constants",
        ("constant", "value", "source"),
        tuple(
            (each.name, f"{each.value:g} {each.unit}".strip(), each.source)
            for each in bill.constants
        ),
        left=frozenset({0, 2}),
    )


def grams(value: float | None) -> str:
    """A mass, such as `12.3 mg`."""
    if value is None:
        return fmt.MISSING
    for size, unit in ((1e3, "kg"), (1.0, "g"), (1e-3, "mg")):
        if abs(value) >= size * 0.9995:
            return f"{fmt.digits(value / size)} {unit}"
    return f"{fmt.digits(value / 1e-6)} µg"


def money(value: float | None) -> str:
    """An amount; a small one as that of a million."""
    if value is None:
        return fmt.MISSING
    if 0 < value < 0.01:
        return f"{fmt.digits(value * 1e6)} a million"
    return fmt.digits(value)
