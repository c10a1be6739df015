"""What the small language model is, and how it is trained: settings, read from a config and checked."""

import dataclasses
from typing import Literal

from tvjax.errors import reject
from tvjax.nn.decoder import DecoderConfig, Precision
from tvjax.settings import SEED, Checked, Settings, setting
from tvjax.tasks.text import Template
from tvjax.text.data import DataConfig
from tvjax.train.state import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    """The decoder, of the form of Llama: rotary positions, RMSNorm, a gated MLP, no biases; and its vocabulary."""

    vocab_size: int = setting(about="most tokens of the byte-level BPE, which is trained on the pairs", least=257)
    num_layers: int = setting(about="L", least=1)
    width: int = setting(about="D", least=1)
    num_heads: int = setting(about="H", least=1)
    hidden_width: int = setting(0, "F; 0: 4 D", least=0)
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "of activations: float32, bfloat16; parameters are float32, in the folder too"
    )
    matmul_precision: Precision = setting("highest", "of float32 on GPUs, TPUs: highest, high, default")

    def check(self, path: str) -> None:
        """Raise `UserError` for heads of an odd width."""
        if self.width % (2 * self.num_heads):
            raise reject(f"{path}.num_heads", self.num_heads, f"half a divisor of width = {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTraining(TrainConfig):
    """How the model is trained, and on which prompts."""

    demonstrations: int = setting(about="K: a prompt shows one more pair, and every answer counts", least=1)
    batch: int = setting(about="prompts a step", least=1)
    seed: int = setting(about="of the parameters and the batches", **SEED)
    learning_rate: float = setting(about="peak", above=0)


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """How much is measured."""

    prompts: int = setting(about="of each evaluation", least=1)


@dataclasses.dataclass(frozen=True)
class TextModelSettings(Settings):
    """The whole experiment, checked."""

    data: DataConfig
    template: Template
    model: ModelConfig
    train: TextTraining
    optimizer: OptimizerConfig
    evaluation: MeasureConfig

    def decoder(self, vocabulary: int) -> DecoderConfig:
        """The decoder for a tokenizer of `vocabulary` tokens."""
        m = self.model
        return DecoderConfig(
            num_layers=m.num_layers,
            width=m.width,
            num_heads=m.num_heads,
            num_outputs=vocabulary,
            inputs="tokens",
            vocab_size=vocabulary,
            hidden_width=m.hidden_width,
            norm="rmsnorm",
            positions="rotary",
            mlp="gated_silu",
            bias=False,
            tied_readout=True,
            dtype=m.dtype,
            matmul_precision=m.matmul_precision,
        )
