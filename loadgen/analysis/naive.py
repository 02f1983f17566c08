"""Naive estimates of a run's energy beside what was measured.

What papers and calculators take where nothing was measured: FLOPs at peak times TDP,
TDP times runtime, utilization times TDP, tokens times a constant. Fernandez et al. 2025
(Table 4) set the first against measurements and divide by the peak with structured
sparsity; with the dense one the same measurement is twice as close to the estimate, or
below it. So both are given. An estimate that lacks a fact names the option that gives
it; none is ever made up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from loadgen.analysis.datasheets import (
    GPU_SHEETS,
    GpuSheet,
    ModelSheet,
    gpu_sheet,
    model_sheet,
)
from loadgen.analysis.schema import NaiveBlock, NaiveEstimate, Summary
from loadgen.errors import UsageError
from proxy.wire.api import BoardSummary

ECOLOGITS_BATCH = 64
ECOLOGITS_SOURCE = (
    "EcoLogits, March 2026: (1.1665e-6 exp(-0.0112 x 64) x billions of active "
    "parameters + 4.053e-5) Wh of GPU per output token, at its batch of 64"
)
QUOTED_JOULES_PER_TOKEN = 3.5
QUOTED_SOURCE = (
    "middle of the 3 to 4 J per token of LLaMA-65B in Samsi et al. 2023 (arXiv "
    "2310.03003), as it is quoted for other models"
)
METADATA_KEYS = ("gpu", "gpus", "parameters")
"""`--metadata gpu=h200` at the replay tells what `--gpu` tells later."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a user tells about a run; None is not told."""

    gpu: str | None = None
    gpus: int | None = None
    parameters: float | None = None
    utilization: float | None = None
    joules_per_token: float | None = None


NOTHING_GIVEN = Given()


@dataclass(frozen=True, slots=True)
class Work:
    """What the answered requests of the window were, beyond the summary's sums."""

    attention_pairs: float
    """Sum over computed tokens of the tokens that each looks at."""
    busy_fraction: float | None
    """Part of the window in which a request was in flight."""


def naive_block(
    summary: Summary, work: Work, given: Given = NOTHING_GIVEN
) -> NaiveBlock:
    """Every estimate of a run with measured over naive; null with a reason each.

    Raises UsageError for a GPU that was named and is in no table, and for figures that
    cannot be.
    """
    _check(given)
    board = _board(summary, given)
    boards = given.gpus or _number(summary, "gpus") or _observed(summary)
    model = _model(summary, given)
    energy = summary.energy
    return NaiveBlock(
        gpu=board.name if board else None,
        gpus=boards,
        model=summary.model,
        parameters=(model.active_parameters or model.parameters) if model else None,
        boundary=energy.boundary,
        measured_joules=energy.measured_joules,
        measured_reason=None
        if energy.measured_joules is not None
        else energy.reason or "not measured",
        estimates=[
            *_flops(summary, work, board, model),
            *_tdp(summary, work, board, boards, given),
            *_tokens(summary, model, given),
        ],
    )


def _flops(
    summary: Summary, work: Work, board: GpuSheet | None, model: ModelSheet | None
) -> list[NaiveEstimate]:
    """The paper's "ideal" line, TDP / peak x FLOPs, for both peaks."""
    computed = summary.total_input_tokens - summary.cached_tokens
    tokens = computed + summary.total_output_tokens
    found = []
    for kind in ("dense", "sparse"):
        lacking = _lacking(board, model)
        peak = None
        if board is not None and lacking is None:
            peak = board.dense_flops if kind == "dense" else board.sparse_flops
            if peak is None:
                lacking = f"{board.name} has no structured sparsity"
        name = f"flops_{kind}_peak"
        if peak is None or board is None or model is None:
            found.append(_unknown(name, lacking or "not known"))
            continue
        flops = tokens * model.flops_per_token
        flops += work.attention_pairs * model.attention_flops_per_pair
        found.append(
            _estimate(
                summary,
                name,
                flops / peak * board.tdp_watts,
                f"{flops:.3g} FLOPs / {peak / 1e12:g} TFLOPS ({kind}) x "
                f"{board.tdp_watts:g} W",
                f"{board.source}; {model.source}",
            )
        )
    return found


def _tdp(
    summary: Summary,
    work: Work,
    board: GpuSheet | None,
    boards: int | None,
    given: Given,
) -> list[NaiveEstimate]:
    seconds = summary.energy.window_seconds or summary.duration
    lacking = None
    if board is None:
        lacking = _GPU_UNKNOWN
    elif boards is None:
        lacking = "number of GPUs not known: give --gpus N"
    if lacking is not None or board is None or boards is None:
        return [_unknown(n, lacking or "") for n in ("tdp_runtime", "utilization_tdp")]
    whole = boards * board.tdp_watts * seconds
    formula = f"{boards} x {board.tdp_watts:g} W x {seconds:.4g} s"
    found = [_estimate(summary, "tdp_runtime", whole, formula, board.source)]
    part, how = given.utilization, "utilization as given"
    if part is None:
        part = work.busy_fraction
        how = (
            "utilization: time with a request in flight, as nvidia-smi counts time "
            "with a kernel"
        )
    if part is None:
        reason = "utilization not known: give --utilization 0.9"
        return [*found, _unknown("utilization_tdp", reason)]
    found.append(
        _estimate(
            summary,
            "utilization_tdp",
            part * whole,
            f"{part:.3g} x {formula}",
            f"{how}; {board.source}",
        )
    )
    return found


def _tokens(
    summary: Summary, model: ModelSheet | None, given: Given
) -> list[NaiveEstimate]:
    tokens = summary.total_output_tokens
    if given.joules_per_token is not None:
        rows = [("tokens_given", given.joules_per_token, "as given")]
    else:
        rows = [("tokens_quoted", QUOTED_JOULES_PER_TOKEN, QUOTED_SOURCE)]
        if model is not None:
            rows.insert(0, ("tokens_ecologits", ecologits(model), ECOLOGITS_SOURCE))
    found = [
        _estimate(summary, name, tokens * each, f"{tokens:,} x {each:.3g} J", source)
        for name, each, source in rows
    ]
    if given.joules_per_token is None and model is None:
        found.insert(0, _unknown("tokens_ecologits", _MODEL_UNKNOWN))
    return found


def ecologits(model: ModelSheet) -> float:
    """GPU joules per output token by EcoLogits' formula."""
    billions = (model.active_parameters or model.parameters) / 1e9
    per_billion = 1.1665e-6 * math.exp(-0.0112 * ECOLOGITS_BATCH)
    return (per_billion * billions + 4.053e-5) * 3600


# -- what is known ---------------------------------------------------------------

_GPU_UNKNOWN = f"GPU not known: give --gpu, one of {', '.join(GPU_SHEETS)}"
_MODEL_UNKNOWN = "model size not known: give --parameters 8e9"


def _lacking(board: GpuSheet | None, model: ModelSheet | None) -> str | None:
    if board is None:
        return _GPU_UNKNOWN
    return _MODEL_UNKNOWN if model is None else None


def measured_over_naive(
    blocks: Sequence[NaiveBlock | None],
) -> dict[str, float | None]:
    """Each estimate against the measurement, of all runs of one setting together.

    Sums over sums: null where a run lacks the estimate or the measurement; without
    any block nothing is said at all.
    """
    known = [block for block in blocks if block is not None]
    names = dict.fromkeys(each.name for block in known for each in block.estimates)
    found: dict[str, float | None] = dict.fromkeys(names)
    measured = [block.measured_joules for block in known]
    if len(known) < len(blocks) or None in measured:
        return found
    whole = math.fsum(joules for joules in measured if joules is not None)
    for name in names:
        estimates = [
            each.joules
            for block in known
            for each in block.estimates
            if each.name == name and each.joules is not None
        ]
        naive = math.fsum(estimates)
        if len(estimates) == len(blocks) and naive > 0:
            found[name] = whole / naive
    return found


def _board(summary: Summary, given: Given) -> GpuSheet | None:
    if given.gpu is not None:
        found = gpu_sheet(given.gpu)
        if found is None:
            known = ", ".join(GPU_SHEETS)
            raise UsageError(f"--gpu {given.gpu}: unknown; known: {known}")
        return found
    name = gpu_name(summary)
    return None if name is None else gpu_sheet(name)


def gpu_name(summary: Summary) -> str | None:
    """The engine's GPU: as the user noted it, as the run knows it, as boards tell it.

    None where boards of several models tell.
    """
    noted = _text(summary, "gpu")
    models = {board.model for board in _boards(summary) if board.model}
    return noted or (models.pop() if len(models) == 1 else None)


def _boards(summary: Summary) -> list[BoardSummary]:
    return [board for board in summary.hardware.boards if board.boundary == "gpu"]


def _model(summary: Summary, given: Given) -> ModelSheet | None:
    known = None if summary.model is None else model_sheet(summary.model)
    size = given.parameters or _number(summary, "parameters")
    if size is None or (known is not None and known.parameters == size):
        return known
    return ModelSheet(float(size), None, None, "parameters as given, without attention")


def _text(summary: Summary, name: str) -> str | None:
    """A fact that the user noted, else one that the run did."""
    found = summary.metadata.get(name) or summary.environment.get(name)
    return None if found is None else str(found)


def _number(summary: Summary, name: str) -> int | None:
    """The same as a number; none where it is not one."""
    try:
        found = float(_text(summary, name) or "nan")
    except ValueError:
        return None
    return int(found) if math.isfinite(found) and found >= 1 else None


def _observed(summary: Summary) -> int | None:
    """The boards whose clocks the proxy saw: those it metered."""
    return len(_boards(summary)) or None


def _check(given: Given) -> None:
    for name, low, high, like in (
        ("gpus", 1, 1e5, "8"),
        ("parameters", 1e3, 1e15, "8e9"),
        ("utilization", 0, 1, "0.9"),
        ("joules_per_token", 0, 1e9, "0.2"),
    ):
        value = getattr(given, name)
        if value is not None and not low <= value <= high:
            option = name.replace("_", "-")
            raise UsageError(
                f"--{option} {value:g}: expected {low:g} to {high:g}, such as {like}"
            )


def _estimate(
    summary: Summary, name: str, joules: float, formula: str, source: str
) -> NaiveEstimate:
    measured = summary.energy.measured_joules
    ratio = measured / joules if measured is not None and joules > 0 else None
    return NaiveEstimate(
        name=name, joules=joules, measured_over_naive=ratio, formula=formula,
        source=source,
    )  # fmt: skip


def _unknown(name: str, reason: str) -> NaiveEstimate:
    return NaiveEstimate(name=name, reason=reason)


def with_naive(summary: Summary, work: Work) -> Summary:
    """The summary with its block, by what the run itself knows."""
    return msgspec.structs.replace(summary, naive=naive_block(summary, work))
