"""The largest models, by their shapes alone; and what loading and capturing keep in memory."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.nn.pretrained.families import read_config
from tvjax.nn.pretrained.shapes import shape_of
from tvjax.nn.pretrained.weights import abstract_params, save_folder
from tvjax.parallel.mesh import make_mesh, shardings


class TestScale:
    """The largest models, by their shapes alone."""

    SIZES = {  # noqa: RUF012
        "Meta-Llama-3-8B": 8_030_261_248,
        "Meta-Llama-3-70B": 70_553_706_496,
        "Mistral-7B-v0.1": 7_241_732_096,
        "Mistral-7B-v0.3": 7_248_023_552,
        "gpt2": 124_439_808,
    }

    @pytest.mark.parametrize("mesh", [{"tensor": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}], ids=str)
    @pytest.mark.parametrize("name", SIZES)
    def test_shapes_and_shardings(self, name, mesh):
        count = self.SIZES[name]
        config = shape_of(name, "path", dtype="bfloat16", param_dtype="bfloat16", unroll=1)
        abstract = abstract_params(config)
        assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count
        places = shardings(make_mesh(**mesh), abstract, members=False)
        share = sum(
            int(np.prod(place.shard_shape(leaf.shape)))
            for leaf, place in zip(jax.tree.leaves(abstract), jax.tree.leaves(places), strict=True)
        )
        whole = sum(leaf.size for leaf in jax.tree.leaves(abstract) if leaf.shape[0] % 8)  # an odd vocabulary, norms
        assert share < 1.01 * count / 8 + whole

    def test_capturing_one_layer_stores_one(self):
        config = DecoderConfig(num_layers=32, width=64, num_heads=4, num_outputs=8, unroll=1, positions="none")
        decoder, inputs = Decoder(config), jnp.zeros((16, 64, 5))
        params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), inputs))["params"]

        def bytes_of(**options):
            run = lambda p, i: forward(Model(p, config), i, at=slice(0, 1), **options)
            memory = jax.jit(run).lower(params, inputs).compile().memory_analysis()
            return memory.output_size_in_bytes + memory.temp_size_in_bytes

        nothing = bytes_of()
        one = bytes_of(addresses=("blocks/resid",), layers=(14,))
        state = 16 * 64 * 64 * 4
        assert one < nothing + 4 * state
        assert bytes_of(addresses=("blocks/resid",)) > nothing + 31 * state
        last = bytes_of(addresses=("blocks/resid",), read_BS=jnp.full((16, 1), 63))
        assert last < nothing + 4 * state


MEASURE = """
import resource, sys
import jax, jax.numpy as jnp
from tvjax.nn.pretrained.weights import load_folder
jnp.zeros(3).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params = load_folder(sys.argv[1])[1]
jax.block_until_ready(params)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(size, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
def test_loading_a_gigabyte_takes_little_more(tmp_path):
    """Peak host memory, code and compiler left out, is at most 1.2 times the parameters."""
    values = {
        "model_type": "llama",
        "vocab_size": 16000,
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "intermediate_size": 3584,
        "max_position_embeddings": 2048,
        "torch_dtype": "float32",
    }
    config = read_config(values, "config.json")
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract_params(config))
    save_folder(tmp_path, config, params, values)
    del params
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert size > 1e9
    assert peak < 1.2 * size, f"{peak / size:.2f} times"
