"""Adapters: what is trained, kept and handed on; the same steps as peft with a plain loop; refusals."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from runs import assert_same_state, log, new_run, small_run, work
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab.cli.build import build_data, build_model, check_frozen
from genlab.cli.export import export
from genlab.cli.load import load_run
from genlab.errors import ConfigError
from genlab.models.schedule import Schedule
from genlab.models.trained import Plan
from genlab.networks.adapter import Adapter, merged
from genlab.runs.checkpoint import load_checkpoint

SHORT = ("data.block_size=16", "sampler.max_new_tokens=4", "evaluation=none", "callbacks.samples.count=0",
         "callbacks.final.count=0", "resume=never")  # fmt: skip


def config_of(folder: Path, *overrides: str) -> Any:
    return small_run("model=pretrained_lm", folder, "adapter=lora", "adapter.settings.r=4", *SHORT, *overrides)


@functools.cache
def trained(folder: Path) -> Any:
    run = new_run(config_of(folder))
    assert work(run) == 0, log(run)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("adapter"))


def pretrained(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(config.model.network.path).eval()


def test_only_the_adapter_is_trained_and_kept(run: Any) -> None:
    loaded = load_run(run.path, device="cpu")
    model = loaded.model
    names = set(model.state_dict())
    assert names
    assert all("lora_" in name for name in names)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names
    checkpoint = load_checkpoint(run.last)
    assert set(checkpoint["state_dict"]) == set(checkpoint["ema"]["ema"]) == names
    moments = [state for group in checkpoint["optimizer_states"] for state in group["state"].values()]
    assert len(moments) == len(names)
    assert checkpoint["frozen"].keys() == {"model.network.below_adapter"}
    base = dict(pretrained(loaded.config).named_parameters())
    below = {name.replace("base_layer.", ""): p for name, p in model.network.named_parameters() if "lora_" not in name}
    assert below.keys() == base.keys()
    assert all(torch.equal(value, base[name]) for name, value in below.items())
    assert any(value.abs().max() > 0 for name, value in model.state_dict().items() if "lora_B" in name)


def test_an_export_is_read_by_peft_and_by_transformers(run: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = load_run(run.path, device="cpu")
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = loaded.model.network(input_ids=ids).logits
        plain = pretrained(loaded.config)(input_ids=ids).logits
    assert (expected - plain).abs().max() > 1e-3

    export(str(run.path), tmp_path / "peft", format="peft")
    with torch.no_grad():
        logits = PeftModel.from_pretrained(pretrained(loaded.config), tmp_path / "peft").eval()(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert set(load_file(tmp_path / "peft" / "adapter_model.safetensors")) == {
        f"base_model.model.{name.removeprefix('network.').replace('.default', '')}"
        for name in loaded.model.state_dict()
    }
    assert "PeftModel" in (tmp_path / "peft" / "README.md").read_text()

    export(str(run.path), tmp_path / "genlab")
    with torch.no_grad():
        again = load_run(tmp_path / "genlab", device="cpu").model.network(input_ids=ids).logits
    torch.testing.assert_close(again, expected)

    export(str(run.path), tmp_path / "merged", format="transformers")
    assert not [name for name in load_file(tmp_path / "merged" / "model.safetensors") if "lora" in name]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_steps_are_those_of_peft_with_a_plain_loop(tmp_path: Path) -> None:
    config = config_of(tmp_path, "adapter.settings.r=2")
    model = build_model(config)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, lora_alpha=32, target_modules=["c_attn", "c_proj", "c_fc"])
    plain: Any = get_peft_model(pretrained(config), lora)  # type: ignore[arg-type]
    state = {f"base_model.model.{name.removeprefix('network.')}": value for name, value in model.state_dict().items()}
    assert not plain.load_state_dict(state, strict=False).unexpected_keys
    assert len(state) == sum(p.requires_grad for p in plain.parameters())

    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    make = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)
    model.plan = Plan(make, Schedule(max_samples=10**6), batch_size=4)
    model.tokenizer = data.tokenizer
    ours, theirs = model.configure_optimizers(), make([p for p in plain.parameters() if p.requires_grad])
    model.train()
    plain.train()
    batches = list(data.batches(data.eval_loader("val")))[:2]
    for step in range(20):
        batch = batches[step % len(batches)]
        one = model.losses(batch)["loss"]
        logits = plain(input_ids=batch["input_ids"]).logits
        other = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        for loss, optimizer in ((one, ours), (other, theirs)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_a_run_of_two_ranks_and_one_that_goes_on_are_that_of_one(tmp_path: Path) -> None:
    options = ("debug=null", "data.batch_size=4", "schedule.max_samples=24", "schedule.save_every=8",
               "data.limit_val=4", "schedule.eval_every=0", "schedule.log_every=8", "schedule.warmup=0")  # fmt: skip
    whole = new_run(config_of(tmp_path, *options))
    assert work(whole) == 0, log(whole)
    config = config_of(tmp_path, *options)
    stop = {"_target_": "fault_parts.Signal", "number": 15, "samples": 8, "folder": str(tmp_path)}
    config.callbacks.extra = [stop]
    broken = new_run(config)
    assert work(broken, allow="fault_parts") == 143, log(broken)
    assert work(broken, allow="fault_parts") == 0, log(broken)
    assert_same_state(whole, broken)
    two = new_run(config_of(tmp_path, *options, "trainer.devices=2"))
    assert work(two, ranks=2) == 0, log(two)
    alone, shared = (load_checkpoint(run.last)["state_dict"] for run in (whole, two))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4)


def test_the_base_may_be_a_run_and_must_stay_it(run: Any, tmp_path: Path) -> None:
    base = new_run(small_run("model=pretrained_lm", tmp_path, *SHORT))
    assert work(base) == 0, log(base)
    above = new_run(config_of(tmp_path, f"adapter.base={base.path}"))
    assert work(above) == 0, log(above)
    whole, adapted = load_run(base.path, device="cpu").model, load_run(above.path, device="cpu").model
    own = dict(whole.network.named_parameters())
    below = {n.replace("base_layer.", ""): p for n, p in adapted.network.named_parameters() if "lora_" not in n}
    assert all(torch.equal(value, own[name]) for name, value in below.items())
    assert adapted.network.below_adapter.source == str(base.path)
    with pytest.raises(ConfigError, match=r"below_adapter: the weights of .* have sha256 .* was trained with"):
        check_frozen(adapted, load_checkpoint(run.last), run.last)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Conv2d(1, 2, 3))
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder[0](x)


def test_any_part_and_any_method() -> None:
    torch.manual_seed(0)
    for adapter, weights in (
        (Adapter(part="encoder", settings={"r": 2}), 2),
        (Adapter(part="encoder", settings={"r": 2, "use_dora": True}), 3),
        (Adapter(part="encoder", targets="[02]", settings={"r": 2}), 4),  # a convolution too
        (Adapter("ia3", "encoder", ["0"], {"feedforward_modules": []}), 1),
    ):
        model, x = Small(), torch.randn(3, 4)
        before = model(x)
        adapter.put_on(model)
        assert len(model.state_dict()) == weights, adapter
        torch.testing.assert_close(model(x), before)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        after = model(x)
        assert (after - before).abs().max() > 1e-3
        torch.testing.assert_close(merged(model.encoder)[0](x), after, rtol=1e-4, atol=1e-5)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.part=decoder: there is no decoder; the parts are encoder$"):
        Adapter(part="decoder").put_on(Small())
    with pytest.raises(ConfigError, match=r"adapter\.method=lorra: peft has .*ia3.*lora"):
        Adapter("lorra", "encoder").put_on(Small())
    with pytest.raises(ConfigError, match=r"adapter\.settings: got an unexpected keyword argument 'rank'"):
        Adapter(part="encoder", settings={"rank": 2}).put_on(Small())
    with pytest.raises(ConfigError, match=r"adapter: Target modules .*q_proj.* not found in the base model"):
        Adapter(part="encoder", targets=["q_proj"]).put_on(Small())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'adapter needs peft: pip install "genlab\[finetune\]"'):
        Adapter(part="encoder").put_on(Small())
