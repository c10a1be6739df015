"""Low-rank adaptation (Hu et al. 2021) as a transform of the parameter tree: ``W <- W + A B`` in every layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.nn.decoder import DecoderConfig

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def sites(c: DecoderConfig) -> dict[str, Shapes]:
    """The linear maps that can be adapted, by name, with the shapes of what goes in and of what comes out."""
    heads, groups, gate = (c.num_heads, c.channels), (c.kv_heads, c.channels), c.mlp.startswith("gated_")
    shapes: dict[str, Shapes] = {
        "query": ((c.width,), heads),
        "key": ((c.width,), groups),
        "value": ((c.width,), groups),
        "out": (heads, (c.width,)),
        "up": ((c.width,), (c.hidden,)),
        "down": ((c.hidden,), (c.width,)),
    }
    return shapes | ({"gate": ((c.width,), (c.hidden,))} if gate else {})


def per_rank(c: DecoderConfig, names: tuple[str, ...]) -> int:
    """How many numbers one more unit of rank has, over all layers."""
    return c.num_layers * sum(math.prod(shape) for name in names for shape in sites(c)[name])


def init_lora(key: jax.Array, c: DecoderConfig, names: tuple[str, ...], rank: int) -> Any:
    """``{site: {"down": [L, in, r], "up": [L, r, out]}}``: the first random, the second zero: no change."""
    lora = {}
    for name, site_key in zip(names, jax.random.split(key, len(names)), strict=True):
        fan_in, fan_out = (math.prod(shape) for shape in sites(c)[name])
        down = jax.random.normal(site_key, (c.num_layers, fan_in, rank)) * fan_in**-0.5
        lora[name] = {"down": down, "up": jnp.zeros((c.num_layers, rank, fan_out))}
    return lora


def apply_lora(params: Any, lora: Any, precision: str | None = None) -> Any:
    """`params` with the adapted kernels in their places; everything else is the same array. precision: of products."""
    blocks = dict(params["blocks"])
    for name, pair in lora.items():
        kernel = blocks[name]["kernel"]
        delta = jnp.matmul(pair["down"], pair["up"], precision=precision).reshape(kernel.shape)
        blocks[name] = {**blocks[name], "kernel": (kernel + delta).astype(kernel.dtype)}  # rounded once, if at all
    return {**params, "blocks": blocks}
