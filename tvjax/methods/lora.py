"""LoRA (Hu et al. 2021): a low-rank change of some kernels."""

import dataclasses
import math
from typing import Any

import jax

from tvjax.errors import reject
from tvjax.methods import atv
from tvjax.methods.base import RunContext
from tvjax.methods.trained import Trained, TrainedSettings
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.lora import apply_lora, init_lora, per_rank, sites
from tvjax.nn.model import Model
from tvjax.settings import setting
from tvjax.vectors.adapters import Adapter, Change, Frozen


@dataclasses.dataclass(frozen=True)
class LoRA(Adapter):
    """Low-rank adaptation (Hu et al. 2021) of the kernels `sites`: one for all queries."""

    target: DecoderConfig
    rank: int
    sites: tuple[str, ...] = ("query", "value")

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        return init_lora(key, self.target, self.sites, self.rank)

    def change(self, params: Any, frozen: Frozen, reading: None, q: Questions) -> Change:
        target: Model = frozen["target"]
        return Change(Model(apply_lora(target.params, params, target.config.matmul_precision), target.config))


@dataclasses.dataclass(frozen=True)
class LoRASettings(TrainedSettings):
    """The fields of config.lora."""

    rank: int = setting(0, "0: as many trained numbers as ATV has", least=0)
    sites: tuple[str, ...] = setting(
        ("query", "value"), "kernels: query, key, value, out, up, gate, down", entries=1, distinct=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAMethod(Trained):
    """The method, whose sites are kernels of the target."""

    def check(self, own: LoRASettings, c: DecoderConfig) -> None:
        """Raise `UserError` for a kernel that the target has not."""
        for site in own.sites:
            if site not in sites(c):
                raise reject("config.lora.sites", site, ", ".join(sites(c)))


def _adapter(context: RunContext, own: LoRASettings) -> LoRA:
    c = context.target.config
    equal = max(1, round(atv.size(context) / per_rank(c, own.sites)))
    full = min(math.prod(shape) for site in own.sites for shape in sites(c)[site])
    return LoRA(c, own.rank or min(equal, full), own.sites)


METHOD = LoRAMethod(
    name="lora",
    label="LoRA",
    knows="query",
    source="LoRA: Hu et al. (2021).",
    settings=LoRASettings,
    adapter=_adapter,
    more=lambda adapter, frozen: {"rank": adapter.rank},
)
