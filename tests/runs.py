"""Runs for tests: composed from the shipped conf on small data made here, and trained.

A single rank trains in the process of the tests, several in processes that stand ready. A run that is to be killed or
stopped gets a process of its own (`start`).
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from isolation import isolated, without_curves, worker
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from processes import as_a_process, server, together
from safetensors.torch import save_file
from scipy.io import wavfile
from torch import Tensor

from genlab.cli.check import check
from genlab.cli.ranks import free_port, worker_environment
from genlab.cli.train import open_run, with_debug
from genlab.data.vocabulary import END, PAD, train_tokenizer
from genlab.networks.vgg import SLICES
from genlab.runs.checkpoint import load_checkpoint
from genlab.runs.directory import RunDirectory
from genlab.runs.metrics import read_rows

ROOT = Path(__file__).resolve().parent.parent
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
# Networks for tests of what is around them; the contract test takes those that are shipped.
_UNET = ("model.network.network.block_out_channels=[8,8]", "model.network.network.norm_num_groups=4",
         "model.network.network.attention_head_dim=8")  # fmt: skip
_TRANSFORMER = ("model.network.config.num_hidden_layers=2", "model.network.config.hidden_size=32",
                "model.network.config.intermediate_size=64")  # fmt: skip
SMALL = {
    "model=audio_codec": ("model.network.width=4", "model.bottleneck.codes=16", "model.critic.width=4"),
    "model=audio_lm": (
        "model.network.config.n_layer=2",
        "model.network.config.n_embd=32",
        "model.network.config.resid_pdrop=0.0",
        "model.network.config.embd_pdrop=0.0",
    ),
    "model=captioner": (
        "model.encoder.widths=[8,8]",
        "model.network.config.d_model=32",
        "model.network.config.decoder_ffn_dim=32",
        "model.network.config.dropout=0.0",
    ),
    "model=ddpm": _UNET,
    "model=flow": _UNET,
    "model=gan": ("model.generator.width=4", "model.critic.width=4", "model.generator.latent_dim=8"),
    "model=gpt": ("model.network.config.n_layer=2", "model.network.config.n_embd=32"),
    "model=llama": _TRANSFORMER,
    "model=masked_diffusion": _TRANSFORMER,
    "model=mlm": _TRANSFORMER,
    "model=lstm": ("model.network.embedding=16", "model.network.width=32"),
    "model=seq2seq": (
        "model.network.config.d_model=32",
        "model.network.config.encoder_ffn_dim=32",
        "model.network.config.decoder_ffn_dim=32",
        "model.network.config.dropout=0.0",
    ),
    "model=text_gan": (
        "model.generator.embedding=8",
        "model.generator.width=16",
        "model.critic.embedding=8",
        "model.critic.channels=8",
    ),
    "model=text_vae": (
        "model.encoder.embedding=8",
        "model.encoder.width=16",
        "model.decoder.network.embedding=16",
    ),
}
VGG_WIDTHS = (3, 4, 5, 6, 7)  # channels of the slices of a small VGG16
# What a configuration has no value for; `small_data` gives the real ones.
NEEDED = {"model=reward": ("data.path=.",), "model=stable_diffusion": ("model.path=.", "data.root=.")}
# An experiment that is another one on other data: not trained again, but held to be just that.
TWINS = {name: f"{name.removesuffix('_fashion')}_mnist" for name in EXPERIMENTS if name.endswith("_fashion")}


def make_images(path: Path, shape: Sequence[int], classes: int = 10, count: int = 60) -> Path:
    """An .npz of `count` images: a bright square whose place is the class, on noise."""
    rng = np.random.default_rng(0)
    channels, height, width = shape
    image = rng.integers(0, 60, (count, channels, height, width), dtype=np.uint8)
    label = np.arange(count, dtype=np.int64) % classes
    for i, k in enumerate(label):
        y, x = divmod(int(k), 4)
        image[i, :, 2 + 6 * y : 8 + 6 * y, 2 + 6 * x : 8 + 6 * x] = 230
    np.savez(path, image=image, label=label)
    return path


def make_text(path: Path, characters: int = 65, count: int = 4000) -> Path:
    """A text of exactly `characters` distinct characters, the newline among them."""
    alphabet = "\n" + "".join(chr(33 + i) for i in range(characters - 1))
    rng = np.random.default_rng(0)
    path.write_text(alphabet + "".join(rng.choice(list(alphabet), count - characters)), encoding="utf-8")
    return path


def make_pairs(path: Path, count: int = 60, preferences: bool = False) -> Path:
    """Pairs of 2 to 9 letters: the source in small ones, the target in capitals, of "abcdefgh" (18 tokens with two); as
    preferences, the small letters are the rejected answer."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 2 + i % 8)) for i in range(count)]
    rows = [{"source": word, "target": word.upper()} for word in ["abcdefgh", *words]]
    if preferences:
        rows = [{"source": row["source"], "chosen": row["target"], "rejected": row["source"]} for row in rows]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def make_tone(path: Path, k: float, rate: int, samples: int) -> None:
    """A WAV file of `samples` samples whose pitch is k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.5 * np.sin(2 * np.pi * 200 * (1 + k) * np.arange(samples) / rate)
    wavfile.write(path, rate, (32767 * tone).astype("<i2"))


def make_sounds(folder: Path, classes: int | None, rate: int, samples: int, count: int = 60) -> Path:
    """Tones of `samples` samples and fewer in class folders; without classes a .txt beside each: "tone 0" to "tone 9"
    (17 tokens of characters)."""
    for i in range(count):
        k = i % (classes or 10)
        path = folder / (f"{k:02}" if classes else "") / f"{i:02}.wav"
        make_tone(path, k, rate, samples * (2 + i % 3) // 4)
        if not classes:
            path.with_suffix(".txt").write_text(f"tone {k}\n")
    return folder


def make_digits(folder: Path, digits: int, speakers: int, samples: int) -> Path:
    """Tones with the names of recordings: DIGIT_SPEAKER_INDEX.wav, one of them of the test split."""
    for i in range(digits * speakers * 3):
        digit, speaker, index = i % digits, i // digits % speakers, (0, 5, 10)[i // (digits * speakers)]
        make_tone(folder / f"{digit}_{chr(97 + speaker)}_{index}.wav", digit, 8000, samples)
    return folder


def make_kits(folder: Path, kits: Sequence[str], classes: int, samples: int, count: int = 20) -> Path:
    """Kits of tones, `count` hits of the first and one round of classes of each other, named in a drumkit.xml."""
    from genlab.data.drum_hits import CLASSES

    names = ["kick", "snare", "hat", "tom", "crash", "stick", "clap"][:classes]
    assert len(CLASSES) == classes
    for place, (kit, hits) in enumerate(zip(kits, (count, *[classes] * (len(kits) - 1)), strict=True)):
        for i in range(hits):
            make_tone(folder / kit / f"{i:02}.wav", 0.3 * i + 0.04 * place, 22050, samples * (2 + i % 3) // 4)
        rows = "".join(
            f"<instrument><name>{names[i % classes]}</name><layer><filename>{i:02}.wav</filename></layer></instrument>"
            for i in range(hits)
        )
        (folder / kit / "drumkit.xml").write_text(
            f"<drumkit_info><instrumentList>{rows}</instrumentList></drumkit_info>"
        )
    return folder


def make_captioned(folder: Path, shape: Sequence[int], count: int = 60) -> Path:
    """Image files of `make_images`, and a .txt beside each: "square 0" to "square 9" (19 tokens of characters)."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(make_images(folder.with_suffix(".npz"), shape, count=count)) as file:
        for i, (image, label) in enumerate(zip(file["image"], file["label"], strict=True)):
            Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(folder / f"{i:02}.png")
            (folder / f"{i:02}.txt").write_text(f"square {label}\n")
    return folder


def make_codec(folder: Path) -> Path:
    """A run of a small audio codec at 8,000 Hz: frames of 128 samples, 6 levels of 256 codes."""
    quick = ("~model/critic", "~model/objective", "model.network.width=4", "schedule.max_samples=8",
             "callbacks.final.count=0", "callbacks.latents={reconstructions:0,final:false}")  # fmt: skip
    run = new_run(small_run("model=audio_codec", folder, *quick, shipped=True))
    assert work(run) == 0, log(run)
    return run.path


def compose_train(overrides: Sequence[str]) -> DictConfig:
    """conf/train.yaml as train.py would have it, checked, debug overlay applied."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        whole = compose("train", list(overrides), return_hydra_config=True)
    choices = dict(whole.hydra.runtime.choices)
    OmegaConf.set_struct(whole, False)
    name = f"{choices['model']}-{choices['data']}"
    del whole["hydra"]
    whole.name = name
    check(whole, "train")
    return with_debug(whole, choices)


def small_parts(config: DictConfig, folder: Path) -> list[str]:
    """Overrides that put folders made here in the place of a model's frozen parts."""
    model, overrides = config.model, []
    if "codec" in model:
        overrides.append(f"model.codec.path={make_codec(folder / 'codec')}")
    if "first_stage" in model:
        stage = make_first_stage(folder / "first_stage", config.data.shape, model.latent_shape)
        overrides.append(f"model.first_stage.path={stage}")
    if model.get("text") is not None:
        overrides += [f"model.text.network.path={make_text_encoder(folder / 'text', 19)}", "model.text.width=16"]
    for name, path in (("image", ""), ("encoder", "seen.")):
        if (
            (part := OmegaConf.select(model, f"{name}.{path}network")) is not None
            and "layers" in part
            and "grid" in part
        ):
            save_file(vgg_weights(), folder / "vgg.safetensors")
            overrides.append(f"model.{name}.{path}network.weights={folder / 'vgg.safetensors'}")
            overrides.append("model.width=8" if name == "image" else f"model.{name}.seen.width=8")  # of few pictures
    return overrides


def make_first_stage(folder: Path, shape: Sequence[int], latent_shape: Sequence[int]) -> Path:
    """A folder of diffusers' AutoencoderKL with random weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    levels = (shape[1] // latent_shape[1]).bit_length()
    AutoencoderKL(
        shape[0], shape[0], ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels, (8,) * levels,
        latent_channels=latent_shape[0], norm_num_groups=4, sample_size=shape[1],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def vgg_weights() -> dict[str, Tensor]:
    """VGG16 with few channels."""
    draw = torch.Generator().manual_seed(0)
    weights, last = {}, 3
    for i, (places, width) in enumerate(zip(SLICES, VGG_WIDTHS, strict=True)):
        for place in places:
            weights[f"features.{place}.weight"] = torch.randn(width, last, 3, 3, generator=draw) / (9 * last) ** 0.5
            weights[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=draw)
            last = width
        weights[f"lin{i}.weight"] = torch.rand(1, width, 1, 1, generator=draw)
    return weights


def make_text_encoder(folder: Path, vocab_size: int, width: int = 16) -> Path:
    """A folder of transformers' BERT with random weights."""
    from transformers.models.bert import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    return folder


def small_data(config: DictConfig, folder: Path) -> list[str]:
    """Overrides that put data made here in the place of a config's data set, with the same facts."""
    from pipelines import captioned_pictures, make_pipeline

    folder.mkdir(parents=True, exist_ok=True)
    if config.model.get("path") is not None:  # of a pipeline of diffusers
        pipeline = make_pipeline(folder / "pipeline")
        return [f"model.path={pipeline}", *captioned_pictures(folder / "pictures", pipeline)]
    data = config.data
    if "num_speakers" in data:
        path = make_digits(folder / "digits", data.num_classes or 10, data.num_speakers, 4000)
        words = ["data.vocabulary=null", "data.vocab_size=18", "data.strings=60", "data.held_out_strings=20"]
        return [f"data.path={path}", *(words if "strings" in data else [])]
    if "test_kits" in data:
        kits = ["own", *data.test_kits, *data.val_kits]
        return [f"data.path={make_kits(folder / 'kits', kits, data.num_classes, data.samples)}"]
    if data.modality == "audio":
        return [f"data.root={make_sounds(folder / 'sounds', data.num_classes, data.sample_rate, data.samples)}"]
    if "max_caption" in data:
        path = make_captioned(folder / "captioned", data.shape)
        return ["data=captioned_folder", f"data.root={path}", f"data.shape={list(data.shape)}",
                "data.tokenizer=characters", "data.vocab_size=19", "data.vocabulary=null"]  # fmt: skip
    if data.modality == "image":
        path = make_images(folder / "images.npz", data.shape, data.num_classes or 10)
        return [
            "data=npz",
            f"data.path={path}",
            f"data.shape={list(data.shape)}",
            f"data.num_classes={'null' if data.num_classes is None else data.num_classes}",
        ]
    if "max_source" in data:
        kind = "preferences" if "rejected" in data else "pairs"
        path = make_pairs(folder / f"{kind}.jsonl", preferences="rejected" in data)
        inner = "model.policy" if "policy" in config.model else "model"
        network = OmegaConf.select(config, f"{inner}.network")
        own = network.get("path") is not None
        if own and "causal_lm" in network._target_:
            whole = make_pretrained(folder / "pretrained", 18)
            pair_vocabulary().save(str(whole / "tokenizer.json"))
            return [f"data={kind}", f"data.path={path}", f"data.vocabulary={whole}", "data.vocab_size=18",
                    "data.val_fraction=0.3", "data.test_fraction=0.1", f"{inner}.network.path={whole}",
                    f"{inner}.before=a", f"{inner}.after=b", f"{inner}.end='{END}'"]  # fmt: skip
        return [f"data={kind}", f"data.path={path}", "data.tokenizer=characters", "data.vocab_size=18",
                "data.val_fraction=0.3", "data.test_fraction=0.1",
                *([f"model.network.path={make_pretrained_pairs(folder / 'pretrained')}", "model.prefix=abc"]
                  if own else [])]  # fmt: skip
    pretrained = config.model.get("network", {}).get("path")
    size = 65 if pretrained is not None else min(data.vocab_size, 200)
    path = make_text(folder / "text.txt", size)
    return [
        "data=text_file",
        f"data.path={path}",
        f"data.vocab_size={size}",
        f"data.block_size={data.block_size}",
        *([] if pretrained is None else [f"model.network.path={make_pretrained(folder / 'pretrained', size)}"]),
    ]


def make_pretrained(folder: Path, vocab_size: int) -> Path:
    """A folder as transformers' save_pretrained leaves it, of a small network."""
    from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocab_size, n_positions=256, n_embd=16, n_layer=2, n_head=2,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                        bos_token_id=None, eos_token_id=None)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def make_pretrained_pairs(folder: Path) -> Path:
    """The same of a small T5 with the vocabulary of `make_pairs`."""
    from transformers.models.t5 import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=18, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
                      eos_token_id=0, pad_token_id=1, decoder_start_token_id=1)  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    pair_vocabulary().save(str(folder / "tokenizer.json"))
    return folder


def pair_vocabulary() -> Any:
    """That of `make_pairs`, 18 tokens."""
    return train_tokenizer("characters", 18, [], "abcdefghABCDEFGH", [END, PAD])


def small_run(chosen: str, folder: Path, *overrides: str, shipped: bool = False) -> DictConfig:
    """A run of seconds of one option of conf (for example model=ddpm or experiment=ddpm_cifar10).

    Args:
        shipped: with the network that conf has, not one that is SMALL.
    """
    small = () if shipped else SMALL.get(chosen, ())
    base = (chosen, "trainer=debug", "logger=none", "evaluation=none", *NEEDED.get(chosen, ()))
    data = [*small_data(_composed(base), folder), *small_parts(_composed(base), folder)]
    return compose_train([*base, f"runs_dir={folder / 'runs'}", *data, "data.num_workers=0", *small, *overrides])


_composed = functools.cache(compose_train)  # of what is only read


def new_run(config: DictConfig) -> RunDirectory:
    """A run directory with its config.yaml; the unfinished one of the same configuration, if there is one."""
    run, config = open_run(config)
    OmegaConf.save(config, run.config, resolve=True)
    return run


def _work(path: str, log: str, temporary: str | None, environment: dict[str, str]) -> None:
    as_a_process(log, environment)
    if temporary is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = temporary
    from wandb.sdk.data_types._private import MEDIA_TMP

    from genlab.cli.worker import main

    MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")  # each process removes its own at its end, not the server's
    with without_curves():
        code = main("train", path)
    atexit._run_exitfuncs()  # as at the end of a real worker: a child of multiprocessing leaves them out
    sys.stdout.flush()
    os._exit(code)


def start(
    run: RunDirectory, temporary: str | None = None, rank: int = 0, ranks: int = 1, port: int = 0, allow: str = "",
    **variables: str,
) -> BaseProcess:  # fmt: skip
    """A worker on the run, in a process of its own, with these environment variables; its output goes to RUN/log."""
    keys = ("GENLAB_WORKER", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    all_environment = worker_environment(rank, ranks, port)
    environment = {key: all_environment[key] for key in keys if key in all_environment} | {"GENLAB_ALLOW": allow}
    environment |= variables
    process = server.Process(target=_work, args=(str(run.path), str(run.path / "log"), temporary, environment))
    process.start()
    return process


def start_ranks(run: RunDirectory, ranks: int, allow: str = "", **variables: str) -> list[BaseProcess]:
    """`ranks` workers on the run, as one job."""
    port = free_port() if ranks > 1 else 0
    (run.path / "ranks").mkdir(exist_ok=True)
    return [start(run, rank=rank, ranks=ranks, port=port, allow=allow, **variables) for rank in range(ranks)]


def work(run: RunDirectory, ranks: int = 1, allow: str = "", **variables: str) -> int:
    """Trains the run to its end, with these environment variables: the largest exit code. Output goes to RUN/log."""
    environment = {"GENLAB_ALLOW": allow, **variables}
    if ranks == 1:
        return _train(str(run.path), environment)
    (run.path / "ranks").mkdir(exist_ok=True)
    return max(together(ranks, _train_or_leave, str(run.path), environment))


def _train(path: str, variables: dict[str, str]) -> int:
    with isolated(Path(path) / "log", variables), without_curves():
        return worker("train", path)


def _train_or_leave(path: str, variables: dict[str, str]) -> int:
    """As a worker's process: one that fails is gone, so that the others do not wait for it."""
    if code := _train(path, variables):
        raise SystemExit(code)
    return 0


def log(run: RunDirectory) -> str:
    """What the workers of the run printed."""
    path = run.path / "log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock and the machine."""
    clocks = ("time", "train/samples_per_s", "train/memory_gib")
    return [{k: v for k, v in row.items() if k not in clocks} for row in read_rows(run.metrics)]


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """All tensors and primitives in a nested value, by path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in leaves(inner, f"{prefix}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in leaves(inner, f"{prefix}/{i}").items()}
    return {prefix: value}


def assert_same_state(a: RunDirectory, b: RunDirectory) -> None:
    """Weights, EMA, optimizer, counters: equal to the last bit; metrics.jsonl: equal rows."""
    left, right = leaves(load_checkpoint(a.last)), leaves(load_checkpoint(b.last))
    for state in (left, right):  # an offset in bytes depends on the printed clock times
        del state["/metrics_offset"]
    assert left.keys() == right.keys()
    different = [
        name
        for name, value in left.items()
        if not (torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name])
    ]
    assert not different, f"{len(different)} of {len(left)} differ, first {different[:3]}"
    assert rows(a) == rows(b)
