"""Dimensions of the models that the paper names, and of those whose operations were measured.

From their published config.json; DS 27B from the paper's appendix A.2 (DualPath, arXiv 2602.21548).
"""

from __future__ import annotations

from dataclasses import replace

from engines.model.dimensions import Dimensions, Experts, Indexer, Latent

_LATENT = Latent(query_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)

DEEPSEEK_V32 = Dimensions(
    num_layers=61,
    hidden=7168,
    vocabulary=129280,
    num_heads=128,
    num_kv_heads=128,
    head_dim=56,
    intermediate=18432,
    max_context_tokens=163840,
    weight_bytes=1,
    experts=Experts(routed=256, active=8, shared=1, intermediate=2048, dense_layers=3),
    latent=_LATENT,
    indexer=Indexer(heads=64, head_dim=128, top_k=2048),
)
DEEPSEEK_V3 = replace(DEEPSEEK_V32, indexer=None)
DS_27B = Dimensions(
    num_layers=30,
    hidden=2560,
    vocabulary=129280,
    num_heads=32,
    num_kv_heads=32,
    head_dim=80,
    intermediate=12288,
    max_context_tokens=163840,
    weight_bytes=1,
    experts=Experts(routed=72, active=6, shared=2, intermediate=1536, dense_layers=1),
    latent=replace(_LATENT, query_rank=0),
    indexer=Indexer(heads=32, head_dim=64, top_k=1024),
)
QWEN25_32B = Dimensions(
    num_layers=64,
    hidden=5120,
    vocabulary=152064,
    num_heads=40,
    num_kv_heads=8,
    head_dim=128,
    intermediate=27648,
    max_context_tokens=131072,
    weight_bytes=2,
)
QWEN3_235B = Dimensions(
    num_layers=94,
    hidden=4096,
    vocabulary=151936,
    num_heads=64,
    num_kv_heads=4,
    head_dim=128,
    intermediate=0,
    max_context_tokens=40960,
    weight_bytes=2,
    experts=Experts(routed=128, active=8, shared=0, intermediate=1536, dense_layers=0),
)
GPT_OSS_120B = Dimensions(
    num_layers=36,
    hidden=2880,
    vocabulary=201088,
    num_heads=64,
    num_kv_heads=8,
    head_dim=64,
    intermediate=0,
    max_context_tokens=131072,
    weight_bytes=2,
    experts=Experts(routed=128, active=4, shared=0, intermediate=2880, dense_layers=0),
    window_layers=18,
    window_tokens=128,
)
