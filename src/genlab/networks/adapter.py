"""Adapters: a few weights beside those of a network, which stay as they are. The layers are those of peft."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.files import replacing, write_json
from genlab.networks.frozen import weights_sha256

NAME = "default"  # of the adapter, in the names of its weights


@dataclass(frozen=True)
class Base:
    """The network below an adapter: a frozen part, named by its weights in checkpoints and records."""

    sha256: str
    source: str


@dataclass(frozen=True)
class Adapter:
    """LoRA (Hu et al. 2022, arXiv 2106.09685), DoRA (arXiv 2402.09353: use_dora), IA3 (arXiv 2205.05638) or another
    method of peft, on one part of a model of any family. Only the adapter is trained, averaged, saved and exported.

    Args:
        method: peft's name of it: lora, ia3, loha, lokr, ...
        part: attribute of the model that is adapted, such as "network".
        targets: names of its layers, or ends of them, or one regular expression; None: all of its linear ones, but for
            the head of a language model.
        settings: further arguments of peft's configuration of the method, such as r and lora_alpha.
        base: run, or export, whose weights the model has below the adapter; None: those that it is built with.
    """

    method: str = "lora"
    part: str = "network"
    targets: Sequence[str] | str | None = None
    settings: Mapping[str, Any] | None = None
    base: str | None = None

    def put_on(self, model: nn.Module) -> None:
        """Puts the adapter on the model's part and freezes what lies below.

        Raises:
            ConfigError: peft is not installed; no such method, part or layers; settings that the method lacks.
        """
        try:
            from peft import inject_adapter_in_model
        except ImportError as error:
            raise ConfigError(f'adapter needs {error.name}: pip install "genlab[finetune]"') from None
        network = self._part_of(model)
        before = {id(value) for value in network.state_dict(keep_vars=True).values()}
        base = Base(weights_sha256(network.state_dict()), self.base or f"{self.part} below the adapter")
        config = self.config(network)
        try:
            inject_adapter_in_model(config, network, NAME)
        except ValueError as error:
            raise ConfigError(f"adapter: {str(error).partition('. ')[0]}") from None
        below = {name for name, value in network.state_dict(keep_vars=True).items() if id(value) in before}
        network.adapter, network.below_adapter = config, base  # type: ignore[assignment]

        def of_adapter(_: nn.Module, state: dict[str, Tensor], prefix: str, __: Any) -> None:
            for name in below:
                state.pop(prefix + name, None)

        def expected(_: nn.Module, incompatible: Any) -> None:
            lacking = incompatible.missing_keys
            lacking[:] = [name for name in lacking if not any(name.endswith(own) for own in below)]

        network.register_state_dict_post_hook(of_adapter)
        network.register_load_state_dict_post_hook(expected)

    def config(self, network: nn.Module) -> Any:
        """peft's configuration."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
        from transformers.pytorch_utils import Conv1D

        kinds: dict[str, Any] = {kind.value.lower(): PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in PeftType}
        if self.method not in kinds:
            raise ConfigError(f"adapter.method={self.method}: peft has {', '.join(sorted(kinds))}")
        targets, settings = linear_layers(network) if self.targets is None else self.targets, dict(self.settings or {})
        if hasattr(kinds[self.method], "fan_in_fan_out") and any(isinstance(m, Conv1D) for m in network.modules()):
            settings.setdefault("fan_in_fan_out", True)  # GPT-2's weights stand the other way round
        try:
            return kinds[self.method](target_modules=targets if isinstance(targets, str) else list(targets), **settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"adapter.settings: {str(error).rpartition('__init__() ')[2]}") from None

    def _part_of(self, model: nn.Module) -> nn.Module:
        network: Any = model
        for name in self.part.split("."):
            children = {key: child for key, child in network.named_children() if any(True for _ in child.parameters())}
            if name not in children:
                raise ConfigError(f"adapter.part={self.part}: there is no {name}; the parts are {', '.join(children)}")
            network = children[name]
        return network


def linear_layers(network: nn.Module) -> list[str]:
    """Names of the linear layers of a network, without a language model's head."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

    output: Any = getattr(network, "get_output_embeddings", None)
    head = output() if output is not None else None
    return [n for n, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]


def merged(network: nn.Module) -> nn.Module:
    """The network with its adapter added to its weights, in place, and without the adapter's layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in layers.items():
        layer.merge()
        above, _, last = name.rpartition(".")
        setattr(network.get_submodule(above), last, layer.get_base_layer())
    network._state_dict_hooks.clear()
    network._load_state_dict_post_hooks.clear()
    return network


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within it a model is what lies below its adapter.

    Raises:
        ConfigError: it has none.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    if not layers:
        raise ConfigError("base=true: the run has no adapter; evaluate the folder that it began from, run=FOLDER")
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def write_adapter(folder: Path, network: nn.Module) -> None:
    """An adapter as `PeftModel.from_pretrained` reads it: adapter_model.safetensors and adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        f"base_model.model.{name.replace(f'.{NAME}', '')}": value.detach().cpu().clone().contiguous()
        for name, value in network.state_dict().items()
    }
    with replacing(folder / "adapter_model.safetensors") as temporary:
        safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
    config = json.loads(json.dumps(network.adapter.to_dict(), default=lambda value: sorted(value)))  # type: ignore
    write_json(folder / "adapter_config.json", {**config, "inference_mode": True})
