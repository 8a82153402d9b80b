"""Fits the times of model profiles to measured tables of single operations; never to end-to-end results.

The tables are the H200 SXM ones of aiconfigurator-core 0.12.0 (NVIDIA, Apache-2.0), one .csv.xz a kind of
operation; latencies in ms, DeepEP's in us. What no table says is derived from the models' dimensions by FLOPs
or bytes, or assumed; the comments here and in conf/model_profile say which.

    dsv32_660b   EP32 with DP attention on 4 nodes of 8 GPUs, fp8. Prefill overlaps two micro-batches, so its
                 collectives hide behind computing (assumed); decode's do not.
    ds_27b       dsv32_660b scaled, term by term (engines/model/scaled_times.py)
    qwen25_32b   one GPU, bf16
"""

from __future__ import annotations

import csv
import hashlib
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.model.known_dimensions import DEEPSEEK_V32, DS_27B, QWEN25_32B
from engines.model.scaled_times import ProfileTimes, latent_times
from engines.scheduling.estimate import PromptWork

Row = dict[str, str]
TABLES = {
    "dsa_context": "h200_sxm_sglang0.5.14_dsv32_dsa_context.csv.xz",
    "dsa_generation": "h200_sxm_sglang0.5.14_dsv32_dsa_generation.csv.xz",
    "moe_context": "h200_sxm_sglang_wideep_context_moe.csv.xz",
    "moe_generation": "h200_sxm_sglang_wideep_generation_moe.csv.xz",
    "deepep_ll": "h200_sxm_sglang0.5.6_deepep_ll.csv.xz",
    "gqa_context": "h200_sxm_sglang_gqa_context.csv.xz",
    "gqa_generation": "h200_sxm_sglang_gqa_generation.csv.xz",
    "gemm": "h200_sxm_sglang0.5.14_gemm.csv.xz",
}
_EP = 32
_BALANCE = "power_law_0.6"
"""How unevenly experts are chosen: the mildest of the tables, as experts are replicated to even it out."""
_HBM_BYTES_PER_S = 0.8 * 4.8e12
_SWEEPS = 5000


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights >= 0 of some terms, in seconds, and how well they tell the measured times."""

    weights: tuple[float, ...]
    mape: float
    worst: float
    num_rows: int


@dataclass(frozen=True, slots=True)
class Tables:
    """The folder of tables."""

    folder: Path

    def rows(self, name: str, **equal: str) -> list[Row]:
        """Rows of a table whose columns are `equal`."""
        with lzma.open(self.folder / TABLES[name], "rt", newline="") as file:
            return [row for row in csv.DictReader(file) if all(row[key] == equal[key] for key in equal)]

    def digests(self) -> dict[str, str]:
        """sha256 of each table's file."""
        return {
            name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in TABLES.values()
        }


def fit_all(tables: Tables) -> tuple[dict[str, ProfileTimes], dict[str, Fit]]:
    """The times of each profile, and how well each part is told."""
    fits = {
        "DSA module, prefill": _dsa_prefill(tables),
        "experts, prefill": _experts(tables, "moe_context"),
        "shared expert": _shared_expert(tables),
        "DSA module, decode": _dsa_decode(tables),
        "experts, decode": _experts(tables, "moe_generation"),
        "dispatch and combine, decode": _dispatch(tables),
        "GQA kernel, prefill": _gqa_prefill(tables),
        "GQA kernel, decode": _gqa_decode(tables),
        "GEMM 5120 x 5120": _gemm(tables, "bfloat16", 5120, 5120),
        "GEMM 7168 x 5120": _gemm(tables, "bfloat16", 7168, 5120),
        "GEMM 51200 x 5120": _gemm(tables, "bfloat16", 51200, 5120),
    }
    weights = {name: fit.weights for name, fit in fits.items()}
    ds = _ds_times(weights)
    return {
        "dsv32_660b": ds,
        "ds_27b": latent_times(ds, DEEPSEEK_V32, DS_27B),
        "qwen25_32b": _qwen_times(weights),
    }, fits


def fit(terms: Sequence[Sequence[float]], measured_s: Sequence[float]) -> Fit:
    """Least squares of relative errors with weights >= 0, coordinate by coordinate."""
    relative = np.array(terms) / np.array(measured_s)[:, None]
    scale = np.sqrt((relative**2).sum(axis=0))
    columns = relative / scale
    normal, right = columns.T @ columns, columns.sum(axis=0)
    weights = np.zeros(len(right))
    for _ in range(_SWEEPS):
        for i in range(len(right)):
            rest = normal[i] @ weights - normal[i, i] * weights[i]
            weights[i] = max((right[i] - rest) / normal[i, i], 0.0)
    errors: npt.NDArray[np.float64] = np.abs(columns @ weights - 1)
    found = tuple(float(weight) for weight in weights / scale)
    return Fit(found, float(errors.mean()), float(errors.max()), len(errors))


# -- tables -------------------------------------------------------------------------------------------


def _dsa_prefill(tables: Tables) -> Fit:
    """One GPU's whole heads, fp8 KV, behind prefixes on which attention is sparse. Terms of PromptWork.

    The range is that of appended prompts: fewer new tokens leave a GPU idle, and take as long as 512.
    """
    rows = tables.rows("dsa_context", num_heads="128", kv_cache_dtype="fp8", gemm_type="fp8_block")
    terms, times = [], []
    for row in rows:
        batch, new, cached = int(row["batch_size"]), int(row["isl"]), int(row["step"])
        if not (2048 <= cached <= 65536 and new >= 64 and 512 <= batch * new <= 16384):
            continue
        if batch * cached > 2 << 20:
            continue
        one = PromptWork.of(cached, new)
        terms.append(PromptWork(batch * one.new_tokens, batch * one.pairs, batch * one.kv_tokens).terms())
        times.append(float(row["latency"]) / 1e3)
    return fit(terms, times)


def _dsa_decode(tables: Tables) -> Fit:
    """Terms: 1, requests, tokens of context."""
    rows = tables.rows("dsa_generation", num_heads="128", kv_cache_dtype="fp8", gemm_type="fp8_block")
    return _by_batch(rows, lambda row: int(row["batch_size"]) * int(row["step"]))


def _gqa_decode(tables: Tables) -> Fit:
    rows = tables.rows(
        "gqa_generation", num_heads="40", attn_dtype="bfloat16", kv_cache_dtype="bfloat16", window_size="0"
    )
    return _by_batch(rows, lambda row: int(row["batch_size"]) * int(row["step"]))


def _by_batch(rows: list[Row], context: Callable[[Row], int]) -> Fit:
    kept = [row for row in rows if int(row["batch_size"]) <= 256]
    terms = [(1.0, float(row["batch_size"]), float(context(row))) for row in kept]
    return fit(terms, [float(row["latency"]) / 1e3 for row in kept])


def _experts(tables: Tables, name: str) -> Fit:
    """Of one GPU of the unit. The table counts the unit's tokens; terms: 1, tokens of one GPU."""
    rows = tables.rows(name, moe_ep_size=str(_EP), distribution=_BALANCE)
    terms = [(1.0, int(row["num_tokens"]) / _EP) for row in rows]
    return fit(terms, [float(row["latency"]) / 1e3 for row in rows])


def _shared_expert(tables: Tables) -> Fit:
    """Both GEMMs of the expert that every token passes. Terms: 1, tokens."""
    up, down = _gemm(tables, "fp8_block", 4096, 7168), _gemm(tables, "fp8_block", 7168, 2048)
    return Fit(_sum(up.weights, down.weights), max(up.mape, down.mape), max(up.worst, down.worst), 0)


def _dispatch(tables: Tables) -> Fit:
    """Low-latency kernels on 4 nodes. Terms: 1, tokens of one GPU."""
    rows = tables.rows("deepep_ll", node_num="4", num_experts="256")
    times = [(float(row["dispatch_avg_t_us"]) + float(row["combine_avg_t_us"])) / 1e6 for row in rows]
    return fit([(1.0, float(row["num_token"])) for row in rows], times)


def _gqa_prefill(tables: Tables) -> Fit:
    """The table has no prefixes: terms are 1 and pairs. KV that is only read is derived from its bytes."""
    rows = tables.rows(
        "gqa_context", num_heads="40", attn_dtype="bfloat16", kv_cache_dtype="bfloat16", window_size="0"
    )
    kept = [row for row in rows if int(row["isl"]) >= 1024]
    terms = [(1.0, int(row["batch_size"]) * PromptWork.of(0, int(row["isl"])).pairs) for row in kept]
    return fit(terms, [float(row["latency"]) / 1e3 for row in kept])


def _gemm(tables: Tables, dtype: str, n: int, k: int) -> Fit:
    """Terms: 1, tokens."""
    rows = [row for row in tables.rows("gemm", gemm_dtype=dtype, n=str(n), k=str(k)) if int(row["m"]) >= 64]
    return fit([(1.0, float(row["m"])) for row in rows], [float(row["latency"]) / 1e3 for row in rows])


# -- profiles -----------------------------------------------------------------------------------------


def _ds_times(weights: dict[str, tuple[float, ...]]) -> ProfileTimes:
    """All 61 layers are taken as expert layers, though the first three are dense."""
    layers = DEEPSEEK_V32.num_layers
    shared, dispatch = weights["shared expert"], weights["dispatch and combine, decode"]
    once, new, pair, kv = weights["DSA module, prefill"]
    decode_once, row, context = weights["DSA module, decode"]
    step = _sum((decode_once, row), weights["experts, decode"], shared, dispatch)
    return ProfileTimes(
        attention_s=(once, new, pair, kv),
        rest_s=_sum(weights["experts, prefill"], shared),
        decode_s=(layers * step[0], layers * step[1], layers * context),
        decode_collective_s=(layers * dispatch[0], layers * dispatch[1]),
    )


def _qwen_times(weights: dict[str, tuple[float, ...]]) -> ProfileTimes:
    once, pair = weights["GQA kernel, prefill"]
    project = _sum(weights["GEMM 7168 x 5120"], weights["GEMM 5120 x 5120"])
    # The tables have no GEMM of the MLP's widths: the nearest one, by FLOPs.
    mlp_once, mlp_new = (3 * 27648 * 5120 / (51200 * 5120) * each for each in weights["GEMM 51200 x 5120"])
    kv = 4096 / _HBM_BYTES_PER_S
    layers = QWEN25_32B.num_layers
    decode_once, row, context = weights["GQA kernel, decode"]
    step = _sum((decode_once, row), project, (mlp_once, mlp_new))
    return ProfileTimes(
        attention_s=(once + project[0], project[1], pair, kv),
        rest_s=(mlp_once, mlp_new),
        decode_s=(layers * step[0], layers * step[1], layers * context),
    )


def _sum(*parts: tuple[float, ...]) -> tuple[float, float]:
    """Of parts that are (once, per token)."""
    once, token = map(sum, zip(*parts, strict=True))
    return once, token


def rounded(weights: Sequence[float]) -> tuple[float, ...]:
    """To the four digits that conf/ holds."""
    return tuple(float(f"{weight:.3e}") for weight in weights)
