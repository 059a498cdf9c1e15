"""What is defined only here (a modality, a condition, a model that does not generate) has all that the shipped have."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import Done, command
from omegaconf import OmegaConf
from seam_parts import Curve, wave

from genlab import load_run
from genlab.cli.condition_values import condition_rows
from genlab.conditions import Caption
from genlab.conditions import Source as TextSource
from genlab.data.characters import Alphabet
from genlab.data.order import subset
from genlab.data.sources import Source
from genlab.decoding.reading import padded
from genlab.errors import ConfigError
from genlab.judges import Judge
from genlab.modality import Image, Text, to_float
from genlab.networks.frozen import weights_sha256
from genlab.parts import FrozenPart
from genlab.picture_conditions import Picture
from genlab.runs.checkpoint import load_checkpoint
from genlab.runs.export import write_export
from genlab.samples import Samples

OPTIONS = {
    "model/curve.yaml": "_target_: seam_parts.CurveModel\n",
    "evaluation/wave.yaml": "_target_: genlab.evaluation.protocol.Protocol\nn: 32\nreference_split: val\n"
    "metrics: {wave_error: {_target_: seam_parts.WaveError, start: 4}}\n",
    "model/checked.yaml": "_target_: seam_parts.Checked\nregressor:\n  _target_: genlab.parts.FrozenPart\n"
    "  path: ???\n  part: linear\n",
    "model/regressor.yaml": "_target_: seam_parts.TurnRegressor\n",
    "data/curves.yaml": "_target_: seam_parts.Curves\nname: curves\nbatch_size: 16\nnum_workers: 0\nseed: ${seed}\n",
}
SMALL = ("data=curves", "evaluation=none", "optimizer.lr=0.05", "schedule.max_samples=4096",
         "schedule.eval_every=2048", "schedule.save_every=1024", "callbacks.samples.count=4", "callbacks.final.count=4",
         "logger=tensorboard")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seams")
    for name, text in OPTIONS.items():
        path = folder / "myconf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(folder: Path, *arguments: str) -> Done:
    return command(*arguments, folder=folder, environment={"GENLAB_ALLOW": "seam_parts"})


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    done = run(folder, "train.py", "--config-dir", "myconf", "model=curve", *SMALL)
    assert done.code == 0, done.output
    (result,) = (folder / "runs").glob("*/*/result.json")
    return result.parent


def test_an_own_modality_and_condition_train_log_and_load(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("GENLAB_ALLOW", "seam_parts")
    assert json.loads((trained / "data.json").read_text())["modality"] == "curve"
    assert len((trained / "samples" / "final.csv").read_text().splitlines()) == 4
    assert (trained / "samples" / "000002048.csv").read_text().startswith("turn 0.0;")
    events = EventAccumulator(str(next((trained / "tensorboard").rglob("events.*")).parent)).Reload()
    assert "curves/text_summary" in events.Tags()["tensors"]
    loaded = load_run(trained, device="cpu")
    samples = loaded.sample(6, turn=[0.1, 0.6])
    assert samples.modality == Curve()
    turns = torch.tensor([0.1, 0.6]).repeat(3)
    assert torch.equal(samples.condition["turn"], turns)
    assert (samples.data - wave(turns)).abs().max() < 0.1


def test_it_samples_from_a_command_line_and_from_a_file(folder: Path, trained: Path) -> None:
    (folder / "turns.txt").write_text("0.25\n\n0.5\n")
    (folder / "turns.jsonl").write_text('{"turn": 0.25}\n{"turn": 0.5}\n')
    waves = wave(torch.tensor([0.25, 0.5]))
    for i, words in enumerate((["condition.turn=[0.25,0.5]"], ["conditions=turns.txt"], ["conditions=turns.jsonl"])):
        done = run(folder, "sample.py", f"run={trained.name}", "n=4", f"out=out{i}", *words)
        assert done.code == 0, done.output
        for j in range(4):
            path = folder / f"out{i}" / f"{j:06d}.json"
            assert (Curve().read(path) - waves[j % 2]).abs().max() < 0.1
            assert json.loads(path.read_text())["meta"]["turn"] == [0.25, 0.5][j % 2]


def test_it_is_evaluated_by_a_metric_of_ones_own(folder: Path, trained: Path, regressor: Path) -> None:
    done = run(folder, "evaluate.py", "--config-dir", "myconf", f"run={trained.name}", "evaluation=wave")
    assert done.code == 0, done.output
    record = json.loads((trained / "evaluation" / "wave_error_32.proxy.json").read_text())
    assert record["values"]["wave_error_32.proxy"] < 0.1
    assert record["protocol"]["metrics"] == {"wave_error": {"_target_": "seam_parts.WaveError", "start": 4}}
    assert record["generated"]["turns"] == "of the split, in order"
    again = ("evaluate.py", "--config-dir", "myconf", f"run={regressor.name}", "evaluation=wave")
    run(folder, *again).line(2, "judges curve, the model makes nothing: choose another protocol")


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        (["condition.turn=2"], "", "condition.turn=2.0: expected a number from 0 to 1."),
        (["condition.label=2"], "", "condition.label: this model knows no such condition (it knows: turn)."),
        (["condition.turn=[0,0.1,0.2,0.3,0.4]"], "", "condition.turn: 5 values for 4 items."),
        (["conditions=x.txt"], "0.1\nnorth\n", "x.txt:2: condition.turn=north: expected a number from 0 to 1."),
        (["conditions=x.txt"], "\n", "conditions=x.txt: holds no condition"),
        (["conditions=x.jsonl"], '{"turn": 0.1}\n{"label": 1}\n', "x.jsonl:2: expected turn, as in the lines before"),
        (["conditions=x.jsonl"], '{"turn": 0.1}\n[3]\n', "x.jsonl:2: expected an object of conditions, such as"),
        (["conditions=x.txt", "condition.turn=0"], "0.1\n", "condition.turn and conditions=x.txt: give one of them"),
        (["prompt=x"], "", "prompt=x: CurveModel is told no text"),
    ],
)  # fmt: skip
def test_bad_conditions_are_answered_in_one_line(
    words: list[str], content: str, message: str, folder: Path, trained: Path
) -> None:
    for name in ("x.txt", "x.jsonl"):
        (folder / name).write_text(content)
    done = run(folder, "sample.py", f"run={trained.name}", "n=4", *words)
    done.line(2, message)


@pytest.fixture(scope="module")
def regressor(folder: Path, trained: Path) -> Path:
    done = run(folder, "train.py", "--config-dir", "myconf", "model=regressor", *SMALL)
    assert done.code == 0, done.output
    (result,) = (folder / "runs").glob("*/regressor*/result.json")
    return result.parent


def test_a_model_that_does_not_generate_has_the_rest(
    folder: Path, regressor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENLAB_ALLOW", "seam_parts")
    path = regressor
    result: dict[str, Any] = json.loads((path / "result.json").read_text())
    assert result["metrics"]["val/loss"] < 0.05
    assert not list((path / "samples").glob("*.csv"))
    loaded = load_run(path, device="cpu")
    assert loaded.weights == "ema"
    message = "TurnRegressor is trained but does not generate."
    run(folder, "sample.py", f"run={path.name}", "n=2").line(2, message)
    export = command("scripts/export.py", f"run={path.name}", "out=export", folder=folder,
                     environment={"GENLAB_ALLOW": "seam_parts"})  # fmt: skip
    assert export.code == 0, export.output
    again = load_run(folder / "export", device="cpu")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_a_frozen_part_is_used_and_not_trained(folder: Path, regressor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run as part of another: outside its state, EMA and optimizer; named by its sha256; refused once it differs."""
    monkeypatch.setenv("GENLAB_ALLOW", "seam_parts")
    source = folder / "part"
    export = command("scripts/export.py", f"run={regressor.name}", f"out={source}", folder=folder,
                     environment={"GENLAB_ALLOW": "seam_parts"})  # fmt: skip
    assert export.code == 0, export.output
    options = ("train.py", "--config-dir", "myconf", "model=checked", f"model.regressor.path={source}", *SMALL)
    done = run(folder, *options)
    assert done.code == 0, done.output
    (path,) = (result.parent for result in (folder / "runs").glob("*/checked*/result.json"))
    checkpoint = load_checkpoint(path / "checkpoints" / "last.ckpt")
    assert set(checkpoint["state_dict"]) == set(checkpoint["ema"]["ema"]) == {"linear.weight", "linear.bias"}
    loaded = load_run(path, device="cpu")
    sha256 = weights_sha256(load_run(regressor, device="cpu").model.linear.state_dict())  # type: ignore[union-attr, operator, arg-type]
    assert checkpoint["frozen"] == {"model.regressor": sha256}
    assert len(list(loaded.model.parameters())) == 2
    losses = loaded.model.losses({"turn": torch.tensor([0.2]), "curve": wave(torch.tensor([0.2]))})
    losses["agreed"].backward()
    assert loaded.model.linear.weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]

    other = load_run(regressor, "raw", device="cpu").model  # other weights in the same place
    with torch.no_grad():
        other.linear.bias.add_(1)  # type: ignore[union-attr, operator]
    shutil.rmtree(source)
    config = {"config": OmegaConf.to_container(load_run(regressor, device="cpu").config)}
    write_export(source, other.state_dict(), "ema", (1, 1), config)
    changed = weights_sha256(other.linear.state_dict())[:12]  # type: ignore[union-attr, operator, arg-type]
    begun = run(folder, *options, f"init_from={path.name}", "name=begun")  # a new run may have another part
    assert begun.code == 0, begun.output
    for words in (("train.py", f"resume={path.name}", "schedule.max_samples=8192"), ("sample.py", f"run={path.name}")):
        run(folder, *words).line(2, "model.regressor", str(source), sha256[:12], changed)


def test_frozen_parts_of_folders(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                intermediate_size=32, max_position_embeddings=16))  # fmt: skip
    bert.save_pretrained(tmp_path / "bert")
    vae = AutoencoderKL(
        1, 1, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",), (8,), latent_channels=2, norm_num_groups=4
    )
    vae.save_pretrained(tmp_path / "vae")
    for name, network in (("bert", bert), ("vae", vae)):
        part = FrozenPart(str(tmp_path / name))
        assert part.sha256 == weights_sha256(network.state_dict())
        assert not any(parameter.requires_grad for parameter in part.on("cpu").parameters())
        assert not part.on("cpu").training
    inner = FrozenPart(str(tmp_path / "vae"), "decoder.conv_out")
    assert torch.equal(inner.on("cpu").weight, vae.decoder.conv_out.weight)
    with pytest.raises(ConfigError, match=r"vae: part=decoder.x: Decoder has no x \(it has: conv_in, "):
        FrozenPart(str(tmp_path / "vae"), "decoder.x")
    with pytest.raises(ConfigError, match="nowhere"):
        FrozenPart(str(tmp_path / "nowhere"))
    (tmp_path / "bert" / "model.safetensors").rename(tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"bert: no model\.safetensors in .*other formats can run code"):
        FrozenPart(str(tmp_path / "bert"))


class Length(Judge):
    """The longer the better."""

    modality = "text"

    def judge(self, samples: Samples, condition: Any) -> list[float]:
        return [float(len(text)) for text in samples.data]


class Half(Judge):
    def judge(self, samples: Samples, condition: Any) -> list[float]:
        return [0.5, math.nan][: len(samples)]


def test_a_judge_gives_a_number_an_item() -> None:
    assert Length()(Samples(Text(), ["a", "abc"])).tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="Length judges text, not image"):
        Length()(Samples(Image(), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)))
    assert Half()(Samples(Text(), ["a"])).tolist() == [0.5]
    for texts in (["a", "b"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="Half"):
            Half()(Samples(Text(), texts))


def test_a_judge_is_a_metric(tmp_path: Path) -> None:
    lines = [{"text": "a", "reference": "abc"}, {"text": "abcde", "reference": "abcd"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metric = ("+evaluation.metrics.judge._target_=genlab.evaluation.metrics.JudgeScores",
              "+evaluation.metrics.judge.judge._target_=test_seams.Length")  # fmt: skip
    done = command("evaluate.py", "samples=pairs.jsonl", "evaluation=text_quality_200_val.proxy", *metric, "out=r.json",
                   folder=tmp_path, environment={"GENLAB_ALLOW": "test_seams"})  # fmt: skip
    assert done.code == 0, done.output
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["values"]["judge_mean_2.proxy"] == 3.0
    assert record["values"]["judge_std_2.proxy"] == pytest.approx(8**0.5)
    assert record["floor"]["values"]["judge_mean_2.proxy"] == 3.5
    assert record["protocol"]["metrics"]["judge"]["judge"] == "test_seams.Length"


class Captioned(Source):
    """Pictures with captions, as a data set of pairs has them."""

    origin = "captioned"

    def __len__(self) -> int:
        return 6

    def batch(self, ids: torch.Tensor, epochs: torch.Tensor) -> Any:
        captions = padded([[1, 2], [3], [2, 1, 4], [4], [1], [2, 2]])[ids]
        images = torch.arange(6, dtype=torch.uint8)[ids][:, None, None, None].expand(-1, 1, 4, 4)
        return {"image": images, "caption": captions}

    def references(self, ids: torch.Tensor) -> list[list[str]]:
        return [[f"answer {i}"] for i in ids.tolist()]

    def select(self, ids: Any) -> Source:
        raise AssertionError("it is not cut")


def test_conditions_of_pairs_and_pictures(tmp_path: Path) -> None:
    tokenizer = Alphabet(["\n", *"abcd"]).tokenizer()
    manifest = SimpleNamespace(name="captioned", splits=("val",), identity=lambda split: f"sha of {split}")
    data: Any = SimpleNamespace(source=lambda split: Captioned(), manifest=manifest)
    picture = Picture((1, 4, 4))
    model: Any = SimpleNamespace(conditions=(Caption(), picture), tokenizer=tokenizer)
    protocol: Any = SimpleNamespace(reference_split="val", chunk=2)

    rows = condition_rows(model, {"caption": ["ab", "c"]}, 4)["caption"]
    assert rows.tolist() == [[1, 2], [3, -1], [1, 2], [3, -1]]
    assert Caption().shown(rows, model) == ["ab", "c", "ab", "c"]
    draw = Caption().draw(6, data, protocol, model)
    assert draw.shown == ["ab", "c", "bad", "d", "a", "bb"]
    assert draw.references == [[f"answer {i}"] for i in range(6)]
    assert draw.facts["sha256"] == "sha of val"
    with pytest.raises(ConfigError, match=r"evaluation.n=7: val has 6 items; lower it"):
        Caption().draw(7, data, protocol, model)
    elsewhere: Any = SimpleNamespace(reference_split="test", chunk=2)
    for known in (Caption(), picture):
        with pytest.raises(ConfigError, match=r"evaluation.reference_split=test: captioned has only val"):
            known.draw(2, data, elsewhere, model)
    with pytest.raises(ConfigError, match="captioned has no source, which the model is told"):
        TextSource().draw(6, data, protocol, model)

    Image().save(tmp_path / "a", torch.full((3, 8, 8), 255, dtype=torch.uint8), {})
    images = condition_rows(model, {"image": [str(tmp_path / "a.png"), torch.full((1, 4, 4), -0.5)]}, 3)["image"]
    assert images.shape == (3, 1, 4, 4)
    assert images[:, 0, 0, 0].tolist() == [1.0, -0.5, 1.0]
    assert picture.shown(images, model)[1] == "(1, 4, 4), mean -0.500"
    draw, ids = picture.draw(3, data, protocol, model), torch.from_numpy(subset(6, 3))
    assert torch.equal(draw.rows, to_float(Captioned().batch(ids, torch.zeros(3))["image"]))  # type: ignore[arg-type]
    assert draw.references == [[f"answer {i}"] for i in ids.tolist()]
    assert draw.shown == [f"val {i}" for i in ids.tolist()]
    assert torch.equal(picture.example(8, data)[6:], picture.example(2, data))  # type: ignore[index]
    for value, message in ((torch.zeros(3, 4, 4), "expected floats"), (str(tmp_path / "b.png"), "no such file")):
        with pytest.raises(ConfigError, match=message):
            picture.rows([value], model)


def test_the_diffs_of_contributing_are_code_that_is_tested() -> None:
    """Each run of added lines, between lines that were there before, stands in seam_parts as it is shown."""
    root = Path(__file__).parents[1]
    section = (root / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a modality, a condition")[2]
    shown = [block.partition("```")[0] for block in section.partition("\n## ")[0].split("```diff\n")[1:]]
    code = Path(__file__).with_name("seam_parts.py").read_text(encoding="utf-8")
    runs = [run for block in shown for run in re.findall(r"(?:^\+.*\n)+", block, re.MULTILINE)]
    assert len(runs) == 4
    for run in runs:
        assert re.sub(r"^\+", "", run, flags=re.MULTILINE).rstrip() in code, run
