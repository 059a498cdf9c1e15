"""The five rules of windows, and text under the targets of before: batches and manifests as they were then.

The numbers were written by the classes that these took the place of (commit 5749b20).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from data_files import cache as cache
from omegaconf import OmegaConf

from genlab.cli.build import build_data, load_config
from genlab.cli.check import check_node
from genlab.cli.comparison.read import read_run
from genlab.cli.old_forms import OLD, TEXT, modern
from genlab.cli.problem import Problem
from genlab.cli.stored import load_yaml
from genlab.data import corpus
from genlab.data.characters import Alphabet
from genlab.data.manifest import digest
from genlab.data.text import Text
from genlab.data.windows import Windows
from genlab.runs.directory import RunDirectory

TOKENS = torch.tensor([(7 * i * i + 3 * i) % 41 for i in range(23)], dtype=torch.int16)
PLACES = torch.tensor([1, 9]), torch.tensor([5, 14])
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
N = -100


@pytest.mark.parametrize(
    ("rule", "length", "items", "ids", "batch", "counted"),
    [
        ({"seed": 7}, 5, 4, [0, 3],
         {"input_ids": [[33, 20, 21, 36, 24], [0, 10, 34, 31, 1]],
          "labels": [[20, 21, 36, 24, 26], [10, 34, 31, 1, 26]]}, None),
        ({"seed": 7, "condition_ids": (10, 20)}, 5, 4, [0, 3],
         {"input_ids": [[33, 20, 21, 36, 24], [0, 10, 34, 31, 1]],
          "labels": [[20, 21, 36, 24, 26], [N, 34, 31, 1, 26]]}, [5, 4]),
        ({}, 5, 5, [1, 4],
         {"input_ids": [[26, 24, 36, 21, 20], [31, 34, 0, 0, 0]],
          "labels": [[24, 36, 21, 20, 33], [34, 10, N, N, N]]}, [5, 2]),
        ({"stride": 2}, 5, 10, [0, 9],
         {"input_ids": [[0, 10, 34, 31, 1], [26, 1, 31, 34, 0]],
          "labels": [[10, 34, 31, 1, 26], [N, N, N, 10, N]]}, [5, 1]),
        ({"rows": 3}, 4, 6, [1, 4],
         {"input_ids": [[36, 21, 20, 33], [19, 19, 33, 0]],
          "labels": [[21, 20, 33, 19], [19, 33, 20, N]], "row": [1, 1], "begins": [True, False]}, None),
        ({"documents": PLACES, "pad": 2, "condition_ids": (10, 20)}, 6, 2, [0, 1],
         {"input_ids": [[0, 10, 34, 31, 2, 2], [21, 20, 33, 19, 19, 2]],
          "labels": [[N, 34, 31, 1, N, N], [20, 33, N, N, 33, N]],
          "attention_mask": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]}, [3, 3]),
    ],
)  # fmt: skip
def test_batches_are_what_they_were(
    rule: dict[str, Any], length: int, items: int, ids: list[int], batch: dict[str, Any], counted: list[int] | None
) -> None:
    source = Windows(TOKENS, length, "x", **rule)
    assert len(source) == items
    chosen, epochs = torch.tensor(ids), torch.full((2,), 2)
    for one in (source, source.to(torch.device("cpu"))):
        got = one.batch(chosen, epochs)
        assert {key: value.tolist() for key, value in got.items()} == batch
        assert {str(v.dtype) for k, v in got.items() if k != "begins"} == {"torch.int64"}
    counts = source.counted(chosen, epochs)
    assert (counts if counts is None else counts.tolist()) == counted


# ---- the targets of before


def make(folder: Path) -> dict[str, dict[str, Any]]:
    """A small text for each of the old targets, and its node as a run has stored it."""
    (folder / "text.txt").write_text("Wer reitet so spät durch Nacht und Wind?\n" * 20)
    Alphabet(sorted(set("Wer reitet so spät durch Nacht und Wind?\n"))).tokenizer().save(str(folder / "tokenizer.json"))
    for name, text in (("train", " a b c <unk> \n b a \n" * 9), ("valid", " a d \n" * 9), ("test", " c b \n" * 9)):
        (folder / f"{name}.txt").write_text(text)
    (folder / "library").mkdir()
    for i in range(40):
        (folder / "library" / f"m{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 3))
    lines = [json.dumps({"text": "abc"[i % 3] * (3 + i % 4) + f"{i:02}", "form": "xy"[i % 2]}) for i in range(60)]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    common = {"name": "mine", "modality": "text", "batch_size": 3, "val_batch_size": 2, "limit_val": None,
              "resident_max": 2000000000, "num_workers": 0, "seed": 3}  # fmt: skip
    prepare = {"_target_": "genlab.data.prepare.Preparation", "near_duplicates": "ignore", "val_fraction": 0.2}
    documents = {"vocabulary": None, "tokenizer": "characters", "special_tokens": [], "prepare": prepare, "exclude": [],
                 "text_field": "text", "condition_values": 64, "select": None}  # fmt: skip
    return {
        "CharacterText": {**common, "_target_": "genlab.data.text.CharacterText", "path": str(folder / "text.txt"),
                          "vocab_size": 19, "block_size": 8, "train_fraction": 0.9, "windows": "random"},
        "TokenizedText": {**common, "_target_": "genlab.data.text.TokenizedText", "path": str(folder / "text.txt"),
                          "tokenizer": str(folder), "vocab_size": 19, "block_size": 8, "train_fraction": 0.5,
                          "characters": 500, "windows": "contiguous"},
        "WordText": {**common, "_target_": "genlab.data.words.WordText", "path": str(folder), "vocab_size": 5,
                     "block_size": 4, "windows": "contiguous", "verify": False},
        "Corpus": {**common, **documents, "_target_": "genlab.data.corpus.Corpus", "vocab_size": 16, "block_size": 9,
                   "path": str(folder / "documents.jsonl"), "documents": "single", "windows": "epoch",
                   "condition": ["form"], "suffixes": [".jsonl"]},
        "PythonLibrary": {**common, **documents, "_target_": "genlab.data.corpus.PythonLibrary", "vocab_size": 25,
                          "block_size": 9, "documents": "packed", "windows": "random", "condition": [],
                          "suffixes": [".py"]},
    }  # fmt: skip


def facts(data: Any) -> str:
    """A digest of the manifest's facts but Python's version, its splits, all units and the first batches of each."""
    data.setup()
    batches = {}
    for split in ("train", "val", "test"):
        ids = torch.arange(2) % len(data.source(split))
        batches[split] = {k: v.tolist() for k, v in data.source(split).batch(ids, torch.tensor([0, 1])).items()}
    known = {key: value for key, value in data.manifest.facts.items() if key != "python"}
    return digest([known, data.manifest.splits, [data.units_per_token(s) for s in ("train", "val", "test")], batches])


BEFORE = {
    "CharacterText": "55f66677bd6b84664b3ab578a386d94c40d9f72344eb65fb8b5043542fefcef0",
    "TokenizedText": "5146a97bf8080d97ea533116c2442085583a5ad6ad6d4dfa69b3d96cd9a34309",
    "WordText": "13753cb939ce8bf4ed34c4759c94348532439babf298795b2c98ef58a09b9a1d",
    "Corpus": "e6fb2f72d67d6950312ac07a8f646382d18625a190ce5a20f1ee6fde9aa6d0da",
    "PythonLibrary": "18bc12cf94b31fcd8ac931623b4ce59d09ed5c414373f6d7b0d36062238eb129",
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_run_of_an_old_target_has_its_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = make(tmp_path)[name]
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path / "library"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"seed": 3, "data": node}))
    config = load_config(RunDirectory(tmp_path / "run"))
    data = build_data(config)
    assert type(data) is Text
    assert facts(data) == BEFORE[name]
    assert modern(OmegaConf.to_container(config)) == config, "what a run writes when it goes on is read as well"  # type: ignore[arg-type]
    with pytest.raises(
        Problem, match=r"^data\._target_: .* is no more\. It is now genlab\.data\.text\.Text with split: "
    ):
        build_data(OmegaConf.create({"data": node}))


def test_an_export_of_an_old_target(tmp_path: Path) -> None:
    stored = {"seed": 3, "data": make(tmp_path)["CharacterText"]}
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"format": 1, "config": stored}))
    (folder / "model.safetensors").write_bytes(b"")
    assert load_config(RunDirectory(folder)).data._target_ == TEXT


def test_stored_records_lead_to_the_text_of_today() -> None:
    found = 0
    for path in sorted(RESULTS.rglob("config.yaml")):
        old = yaml.safe_load(path.read_text())["data"]
        if old["_target_"] in OLD:
            node = OmegaConf.to_container(load_yaml(path).data, resolve=True)
            assert read_run(path.parent).config["data"] == node
            check_node(node, "data")
            data: Any = build_data(OmegaConf.create({"data": node}))
            assert (data.name, data.vocab_size, data.block_size) == (old["name"], old["vocab_size"], old["block_size"])
            found += 1
    assert found >= 12
