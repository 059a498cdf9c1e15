"""Post-processing: each step against a second implementation, the enlarger's weights, sample.py and folders."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import Done, command
from PIL import Image as Pillow
from runs import ROOT, new_run, small_run, work
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from scipy.signal import correlate

from genlab.cli.compose import compose_config
from genlab.data.convert import esrgan_slim, write_safetensors
from genlab.data.registry import DATASETS
from genlab.drawing import read_meta, save_png
from genlab.errors import ConfigError, DataError
from genlab.files import sha256_of
from genlab.modality import Image, Text
from genlab.models.gan import GAN
from genlab.networks import esrgan
from genlab.networks.esrgan import RDN
from genlab.postprocess import Deblock, Enlarge, Lanczos, Step, UnsharpMask, apply_steps
from genlab.runs.directory import RunDirectory


def pictures(n: int = 3, channels: int = 3, height: int = 11, width: int = 9, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), generator=draw, dtype=torch.uint8)


def scene(side: int = 64) -> np.ndarray:
    """A grey picture with slopes, waves and a disc, float64 [side, side] in [0, 255]."""
    y, x = np.mgrid[:side, :side] / side
    return np.clip(90 + 80 * x + 40 * np.sin(7 * y + 3 * x) - 70 * ((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.04), 0, 255)


def as_batch(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.round().astype(np.uint8))[None, None]


# ---- the enlarger and the format of its weights


def layer(kind: str, name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    """As a layers model has it."""
    nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
    return {"class_name": kind, "config": {"name": name, **config}, "name": name, "inbound_nodes": nodes}


def tfjs_model(folder: Path, scale: int, width: int = 6, growth: int = 2, head: int = 5) -> dict[str, Any]:
    """model.json and its weights, random, of the published topology but with few channels."""
    rng, layers, weights, data = np.random.default_rng(scale), [layer("InputLayer", "LR")], [], b""
    channels = {"LR": 3}

    def convolution(name: str, source: str, out: int, size: int) -> str:
        nonlocal data
        for part, shape in (("kernel", [size, size, channels[source], out]), ("bias", [out])):
            array = rng.normal(0, 0.4 / np.sqrt(size * size * channels[source]), shape).astype("<f4")
            weights.append({"name": f"{name}/{part}", "shape": shape, "dtype": "float32"})
            data += array.tobytes()
        layers.append(layer("Conv2D", name, source, kernel_size=[size, size], padding="same", activation="linear"))
        channels[name] = out
        return name

    def other(kind: str, name: str, *sources: str, **config: Any) -> str:
        layers.append(layer(kind, name, *sources, **config))
        channels[name] = sum(channels[s] for s in sources) if kind == "Concatenate" else channels[sources[0]]
        return name

    def relu(source: str) -> str:
        return other("Activation", f"{source}_Relu", source, activation="relu")

    shallow = convolution("F_m1", "LR", width, 3)
    h, states = convolution("F_0", shallow, width, 3), []
    for d in (1, 2):
        joined = other("Concatenate", f"RDB_Concat_{d}_1", h, relu(convolution(f"F_{d}_1", h, growth, 3)), axis=3)
        h = other("Add", f"LRL_{d}", convolution(f"LFF_{d}", joined, width, 1), h)
        states.append(h)
    h = convolution("GFF_1", other("Concatenate", "LRLs_Concat", *states, axis=3), width, 1)
    h = other("Add", "FDF", convolution("GFF_2", h, width, 3), shallow)
    h = relu(convolution("UPN2", relu(convolution("UPN1", h, width, 5)), head, 3))
    h = convolution("UPN3", h, 3 * scale**2, 3)
    convolution("SR", other("UpSampling2D", "UPsample", h, size=[scale, scale], interpolation="nearest"), 3, 3)
    topology = {"model_config": {"class_name": "Functional", "config": {"layers": layers}}}
    manifest = [{"paths": ["group1-shard1of1.bin"], "weights": weights}]
    model = {"format": "layers-model", "modelTopology": topology, "weightsManifest": manifest}
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "group1-shard1of1.bin").write_bytes(data)
    return model


def by_topology(folder: Path, x: np.ndarray) -> np.ndarray:
    """The layers of a model one after another, in numpy and scipy, float64 [H, W, 3] as the format has it."""
    model, data, at, weights = json.loads((folder / "model.json").read_text()), b"", 0, {}
    data = (folder / "group1-shard1of1.bin").read_bytes()
    for weight in model["weightsManifest"][0]["weights"]:
        count = int(np.prod(weight["shape"]))
        weights[weight["name"]] = np.frombuffer(data, "<f4", count, at).reshape(weight["shape"]).astype(np.float64)
        at += 4 * count
    values: dict[str, np.ndarray] = {}
    for one in model["modelTopology"]["model_config"]["config"]["layers"]:
        name, kind = one["name"], one["class_name"]
        inputs = [values[node[0]] for node in one["inbound_nodes"][0]] if one["inbound_nodes"] else [x]
        if kind == "Conv2D":
            kernel = weights[f"{name}/kernel"]
            edge = kernel.shape[0] // 2
            padded = np.pad(inputs[0], ((edge, edge), (edge, edge), (0, 0)))
            planes = [correlate(padded, kernel[..., o], mode="valid")[..., 0] for o in range(kernel.shape[3])]
            values[name] = np.stack(planes, -1) + weights[f"{name}/bias"]
        elif kind == "Activation":
            values[name] = np.maximum(inputs[0], 0)
        elif kind == "Concatenate":
            values[name] = np.concatenate(inputs, 2)
        elif kind == "UpSampling2D":
            values[name] = inputs[0].repeat(one["config"]["size"][0], 0).repeat(one["config"]["size"][1], 1)
        else:
            assert kind in ("Add", "InputLayer")
            values[name] = sum(inputs[1:], inputs[0])
    return values["SR"]


def test_the_network_is_that_of_the_published_files(tmp_path: Path) -> None:
    for scale in (2, 3, 4):
        tfjs_model(tmp_path / "package" / "models" / f"x{scale}", scale)
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        esrgan_slim(tmp_path, tmp_path / name)
        contents.append([(tmp_path / name / f"x{scale}.safetensors").read_bytes() for scale in (2, 3, 4)])
    assert contents[0] == contents[1]
    for scale in (2, 3, 4):
        network = RDN(scale, width=6, growth=2, head=5)
        network.load_state_dict(load_file(tmp_path / "one" / f"x{scale}.safetensors"))
        x = torch.rand(2, 3, 7, 6, generator=torch.Generator().manual_seed(scale))
        with torch.no_grad():
            y = network(x)
        assert y.shape == (2, 3, 7 * scale, 6 * scale)
        assert y.std() > 0.01
        for image, large in zip(x, y, strict=True):
            folder = tmp_path / "package" / "models" / f"x{scale}"
            expected = by_topology(folder, image.permute(1, 2, 0).double().numpy())
            np.testing.assert_allclose(large.permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("fault", ["short", "long", "float16", "quantised", "flat", "absent", "json"])
def test_other_models_are_refused(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "package" / "models" / "x2"
    model = tfjs_model(folder, 2)
    weights, data = model["weightsManifest"][0]["weights"], folder / "group1-shard1of1.bin"
    if fault in ("short", "long"):
        data.write_bytes(data.read_bytes()[:-4] if fault == "short" else data.read_bytes() + b"\0\0\0\0")
    elif fault == "absent":
        data.unlink()
    else:
        weights[0] |= {
            "float16": {"dtype": "float16"},
            "quantised": {"quantization": {}},
            "flat": {"shape": [162]},
        }.get(fault, {})
        (folder / "model.json").write_text("{" if fault == "json" else json.dumps(model))
    with pytest.raises(DataError, match=r"x2/model\.json: not a layers model of float32 convolutions"):
        esrgan_slim(tmp_path, tmp_path)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of x2 in a cache of the test's own."""
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    torch.manual_seed(0)
    path = tmp_path / "cache" / "esrgan_slim" / "x2.safetensors"
    path.parent.mkdir(parents=True)
    write_safetensors(path, {name: value.numpy() for name, value in RDN(2).state_dict().items()})
    monkeypatch.setitem(esrgan.SHA256, 2, sha256_of(path))
    return path


def test_weights_that_are_absent_or_wrong(weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weights at .*x3.*: run `python scripts/fetch_data.py esrgan_slim`"):
        Enlarge(scale=3)
    weights.write_bytes(b"other")
    with pytest.raises(DataError, match=r"sha256 .* expected .*: delete it and run"):
        Enlarge(scale=2)


def test_the_files_that_are_fetched_are_those_that_are_read() -> None:
    files = {file.name: file.sha256 for file in DATASETS["esrgan_slim"].files}
    assert files == {f"x{scale}.safetensors": sha256 for scale, sha256 in esrgan.SHA256.items()}


# Of the package's models on a picture of (7 y + 5 x + 3 c) mod 11 tenths, 6x6: pixels (0, 0), (5, 7), (11, 11) of the
# large one, by TensorFlow.js 4.22 on a CPU.
TENSORFLOW_JS = {
    2: [0.355690, 0.368137, 0.307998, 0.607018, 0.676485, 0.611677, 0.267843, 0.299199, 0.306874],
    3: [0.270381, 0.265639, 0.210990, 0.528368, 0.661871, 0.566204, 0.543568, 0.376172, 0.456034],
    4: [0.410976, 0.434246, 0.379154, 0.433107, 0.508002, 0.411971, 0.598615, 0.571387, 0.617269],
}


@pytest.mark.data
def test_real_weights() -> None:
    """The network gives what the package gives in TensorFlow.js; and a picture that was halved comes back nearer to
    itself than by bicubic interpolation or Lanczos."""
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(6), torch.arange(6), indexing="ij")
    for scale, expected in TENSORFLOW_JS.items():
        try:
            network = esrgan.esrgan_slim(scale)
        except ConfigError:
            pytest.skip("python scripts/fetch_data.py esrgan_slim")
        large = network((7 * y + 5 * x + 3 * c)[None] % 11 / 10)[0]
        values = torch.cat([large[:, h, w] for h, w in ((0, 0), (5, 7), (11, 11))])
        torch.testing.assert_close(values, torch.tensor(expected), atol=5e-6, rtol=0)
    image = as_batch(scene()).float()
    small = F.interpolate(image, scale_factor=0.5, mode="bicubic", antialias=True)
    small = small.clamp(0, 255).round().to(torch.uint8)
    others = (F.interpolate(small.float(), scale_factor=2, mode="bicubic"), Lanczos(scale=2)(small))
    error, *rest = ((large.float() - image).square().mean() for large in (Enlarge(scale=2)(small), *others))
    assert error < min(rest)


# ---- what all steps have in common

STEPS = [Lanczos(scale=1.7), Lanczos(size=[5, 20]), UnsharpMask(amount=2.0), Deblock()]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_item_has_the_same_pixels_in_any_batch(weights: Path, channels: int) -> None:
    images = pictures(7, channels, 20, 17)
    for step in [*STEPS, Enlarge(scale=2)]:
        together = step(images)
        assert together.dtype == torch.uint8
        assert together.shape[:2] == images.shape[:2]
        assert torch.equal(together, torch.cat([step(part) for part in images.split([1, 2, 4])]))
        assert torch.equal(together.flip(0), step(images.flip(0)))
    assert Enlarge(scale=2)(images).shape == (7, channels, 40, 34)


def test_the_network_alone(weights: Path) -> None:
    images, network = pictures(2), esrgan.esrgan_slim(2)
    with torch.no_grad():
        large = network(images.float() / 255).clamp(0, 1)
    alone = Enlarge(scale=2, border=0, back_projections=0)
    assert (alone(images) - 255 * large).abs().max() <= 0.51
    grey = images[:, :1]
    coloured = alone(grey.expand(-1, 3, -1, -1)).float().mean(1, keepdim=True)
    assert (alone(grey) - coloured).abs().max() <= 1


def test_border_and_back_projections(weights: Path) -> None:
    flat = torch.full((1, 3, 12, 12), 200, dtype=torch.uint8)
    large = {border: Enlarge(scale=2, border=border, back_projections=0)(flat).float() for border in (0, 16)}
    seams = {border: (image - image.roll(2, 2)).abs().max() for border, image in large.items()}
    assert seams[16] <= 1 < seams[0]
    images, lost = as_batch(scene(32)), []
    for n in (0, 1, 4):
        again = F.interpolate(
            Enlarge(scale=2, back_projections=n)(images).float(), (32, 32), mode="bicubic", antialias=True
        )
        lost.append((again - images).abs().mean())
    assert lost[0] > 3 * lost[1] > 3 * lost[2]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Enlarge(scale=5), r"Enlarge\.scale=5: choose one of 2, 3, 4"),  # type: ignore[arg-type]
        (lambda: Lanczos(scale=0.0), r"Lanczos\.scale is 0\.0: must be > 0 and <= 16"),
        (lambda: Lanczos(), "give one of them"),
        (lambda: Lanczos(scale=2, size=[3, 3]), "give one of them"),
        (lambda: Lanczos(size=[3]), r"Lanczos\.size is \[3\]: expected height and width"),
        (lambda: UnsharpMask(amount=-1), r"UnsharpMask\.amount is -1: must be > 0"),
        (lambda: Deblock(strength=13), r"Deblock\.strength is 13: must be >= 1 and <= 12"),
        (lambda: Deblock()(pictures(channels=2)), r"takes pictures only.* this is uint8 \[3, 2, 11, 9\]"),
        (lambda: Deblock()(pictures()[0]), r"this is uint8 \[3, 11, 9\]"),
        (lambda: Deblock()(pictures().float()), r"this is float32 \[3, 3, 11, 9\]"),
        (lambda: Deblock()(pictures(0)), "N at least 1"),
    ],
)
def test_bad_settings_and_bad_pictures(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


# ---- Lanczos, unsharp mask, deblocking


def lanczos_matrix(before: int, after: int) -> np.ndarray:
    """Weights of sinc(x) sinc(x / 3), |x| < 3, around the centre of each new pixel; wider where it becomes smaller."""
    wide = max(before / after, 1.0)
    x = (np.arange(before)[None] + 0.5 - (np.arange(after)[:, None] + 0.5) * before / after) / wide
    weights = np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [[22, 18], [7, 5], [11, 30]])
def test_lanczos_is_the_windowed_sinc(size: list[int]) -> None:
    images = pictures()
    down, across = (lanczos_matrix(a, b) for a, b in zip((11, 9), size, strict=True))
    expected = np.clip(down @ np.clip(images.double().numpy() @ across.T, 0, 255), 0, 255)  # 8 bits between the two
    assert np.abs(Lanczos(size=size)(images).numpy() - expected).max() <= 1.5
    assert torch.equal(Lanczos(scale=2)(images), Lanczos(size=[22, 18])(images))


def test_unsharp_mask_is_its_formula() -> None:
    blurred = gaussian_filter(scene(), 1.5, mode="nearest")
    difference = as_batch(scene())[0, 0].numpy() - blurred
    for amount in (0.5, 2.0):
        sharp = UnsharpMask(radius=1.5, amount=amount)(as_batch(scene()))[0, 0].numpy()
        expected = np.clip(scene() + amount * difference, 0, 255)
        assert np.abs(sharp - expected).mean() < 0.5 * amount + 0.3  # the blur is rounded, and three boxes
        assert np.abs(sharp - expected).max() < 6 * amount
        assert np.abs(sharp - scene()).max() > 15 * amount
    kept = UnsharpMask(radius=1.5, amount=2.0, threshold=255)(as_batch(scene()))
    assert torch.equal(kept, as_batch(scene()))


def annex_j(line: list[int], strength: int) -> list[int]:
    """H.263, annex J, along one line of pixels, an edge before each eighth."""
    out = list(line)
    for at in range(8, len(line) - 1, 8):
        a, b, c, d = line[at - 2 : at + 2]
        step = int((a - 4 * b + 4 * c - d) / 8)
        size = max(0, abs(step) - max(0, 2 * (abs(step) - strength)))
        first = size if step > 0 else -size
        second = max(-(size // 2), min(size // 2, int((a - d) / 4)))
        out[at - 2 : at + 2] = [a - second, max(0, min(255, b + first)), max(0, min(255, c - first)), d + second]
    return out


@pytest.mark.parametrize("strength", [1, 5, 12])
def test_deblocking_is_annex_j(strength: int) -> None:
    images = (100 + pictures(2, 3, 34, 25) // 4).to(torch.uint8)  # steps of up to 63 grey levels
    images[1, 0], images[0, 1] = pictures(1, 1, 34, 25)[0, 0], 255
    expected = images.clone()
    for plane in expected.flatten(0, 1):
        for x in range(25):
            plane[:, x] = torch.tensor(annex_j(plane[:, x].tolist(), strength))
        for y in range(34):
            plane[y] = torch.tensor(annex_j(plane[y].tolist(), strength))
    result = Deblock(strength=strength)(images)
    assert torch.equal(result, expected)
    assert not torch.equal(result, images)


def edges(array: np.ndarray) -> float:
    """Mean step across the edges of 8x8 blocks, beyond that of the other neighbours."""
    total = 0.0
    for plane in (array, array.T):
        steps = np.abs(np.diff(plane.astype(float), axis=0)).mean(1)
        total += steps[7::8].mean() - np.delete(steps, np.s_[7::8]).mean()
    return total


def test_deblocking_of_a_jpeg() -> None:
    file = io.BytesIO()
    Pillow.fromarray(scene().round().astype(np.uint8)).save(file, "JPEG", quality=10)
    blocky = np.array(Pillow.open(file))
    result = Deblock(strength=12)(as_batch(blocky))[0, 0].numpy()
    assert edges(result) < 0.5 * edges(blocky)
    assert ((result - scene()) ** 2).mean() < ((blocky - scene()) ** 2).mean()
    flat = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 1, 24, 24)
    assert torch.equal(Deblock(strength=12)(flat), flat)


# ---- sample.py, folders, evaluate.py


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("postprocess")
    run = new_run(small_run("model=gan", folder, "callbacks.samples.count=0", "callbacks.final.count=0"))
    assert work(run) == 0
    return run


def sample(run: RunDirectory, folder: Path, *arguments: str) -> Done:
    return command("sample.py", f"run={run.path}", "n=3", "seed=5", f"runs_dir={folder}", *arguments, folder=folder)


def test_sampling_with_steps(run: RunDirectory, weights: Path, tmp_path: Path) -> None:
    assert sample(run, tmp_path, "out=plain").code == 0
    done = sample(run, tmp_path, "postprocess=[deblock,enlarge_2,sharpen]", "postprocess.sharpen.amount=1.5")
    assert done.code == 0, done.output
    (folder,) = run.path.glob("samples/seed-5-deblock-enlarge_2-sharpen")
    steps = [Deblock(), Enlarge(scale=2), UnsharpMask(amount=1.5)]
    recorded = [step.record() for step in steps]
    settings = {"step": "Enlarge", "scale": 2, "border": 4, "back_projections": 1}
    assert recorded[1] == {**settings, "weights": "esrgan_slim", "sha256": esrgan.SHA256[2]}
    for name in ("000005", "000006", "000007"):
        plain = Image().read(tmp_path / "plain" / f"{name}.png")
        large = Image().read(folder / f"{name}.png")
        assert large.shape == (1, 56, 56)
        assert torch.equal(large, apply_steps(steps, plain[None])[0])
        assert read_meta(folder / f"{name}.png")["postprocess"] == recorded
        assert "postprocess" not in read_meta(tmp_path / "plain" / f"{name}.png")
    assert read_meta(folder / "grid.png")["postprocess"] == recorded
    assert Pillow.open(folder / "grid.png").size == (2 * (3 * 58 - 2), 2 * 56)
    assert sample(run, tmp_path, "postprocess=lanczos_2", "out=one").code == 0
    assert Image().read(tmp_path / "one" / "000005.png").shape == (1, 56, 56)


def test_bad_steps_are_answered_in_one_line(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path))
    for arguments, words in (
        (["postprocess=sharpn"], ["postprocess has no option 'sharpn'", "Did you mean postprocess=sharpen?"]),
        (["postprocess=[deblock,enlarge_5]"], ["no option 'enlarge_5'", "enlarge_2, enlarge_3, enlarge_4"]),
        (["postprocess=sharpen", "postprocess.sharpen.amont=2"], ["Did you mean postprocess.sharpen.amount?"]),
        (["postprocess=sharpen", "postprocess.sharpen.amount=-2"], ["postprocess.sharpen.amount must be", "> 0"]),
        (["postprocess=enlarge_2", "postprocess.enlarge_2.scale=5"], ["scale must be one of 2, 3, 4, is 5"]),
        (["postprocess=sharpen", "postprocess.sharpen._target_=torch.nn.ReLU"], ["is not a Step"]),
        (["postprocess=sharpen,deblock"], ["write postprocess=[sharpen,deblock] for a list"]),
        (["postprocess=[2]"], ["postprocess=[2]: options are names"]),
        (["+postprocess.own=3"], ["postprocess.own", "group of fields"]),
        (["postprocess=enlarge_2"], ["no weights at", "python scripts/fetch_data.py esrgan_slim"]),
    ):
        sample(run, tmp_path, *arguments).line(2, *words)
    monkeypatch.setattr(GAN, "modality", Text())
    sample(run, tmp_path, "postprocess=sharpen").line(2, "postprocess: pictures only", "makes text")
    assert not list(run.path.glob("samples/seed-5-sharpen"))


def test_metrics_take_no_steps(run: RunDirectory, tmp_path: Path) -> None:
    for argument, word in (("postprocess=sharpen", "takes no postprocess"), ("+postprocess=sharpen", "'postprocess'")):
        done = command("evaluate.py", f"run={run.path}", argument, folder=tmp_path)
        done.line(2, word)


def test_every_option_is_one_step_of_its_own_name() -> None:
    names = sorted(path.stem for path in (ROOT / "conf" / "postprocess").glob("*.yaml"))
    config = compose_config(ROOT / "conf", "sample", [f"postprocess=[{','.join(reversed(names))}]"])
    assert list(config.postprocess) == names[::-1]


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "in" / "more").mkdir(parents=True)
    one, two = pictures(2, 1, 16, 20)
    save_png(tmp_path / "in" / "a.png", one, {"seed": 3, "postprocess": [{"step": "Earlier"}]})
    save_png(tmp_path / "in" / "more" / "b.png", two)
    Pillow.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "in" / "a.jpg")
    line = ("scripts/postprocess.py", "postprocess=[lanczos_2,sharpen]", "images=in")
    done = command(*line, "out=out", folder=tmp_path)
    assert done.code == 0, done.output
    assert "3 images" in done.output
    steps: list[Step] = [Lanczos(scale=2), UnsharpMask()]
    assert torch.equal(Image().read(tmp_path / "out" / "a.png"), apply_steps(steps, one[None])[0])
    assert torch.equal(Image().read(tmp_path / "out" / "more" / "b.png"), apply_steps(steps, two[None])[0])
    assert Image().read(tmp_path / "out" / "a.jpg.png").shape == (3, 18, 18)
    meta = read_meta(tmp_path / "out" / "a.png")
    assert meta == {"seed": 3, "postprocess": [{"step": "Earlier"}, *(step.record() for step in steps)]}
    command(*line, "out=in", folder=tmp_path).line(2, "choose another folder")
    command(*line[:2], "images=none", "out=out", folder=tmp_path).line(2, "images=none: holds no images")
    command("scripts/postprocess.py", "images=in", "out=out", folder=tmp_path).line(
        2, "Give postprocess=OPTION: deblock"
    )
    (tmp_path / "in" / "c.png").write_bytes(b"no picture")
    command(*line, "out=out", folder=tmp_path).line(65, "c.png: cannot be read")


def test_a_record_of_post_processed_pictures_says_so(tmp_path: Path) -> None:
    from genlab.evaluation.judged import Folder

    images = pictures(2, 3, 16, 16)
    for name, meta in (("plain", {}), ("sharp", {"postprocess": [UnsharpMask().record()]})):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            save_png(tmp_path / name / f"{i}.png", image, meta)
    assert "postprocess" not in Folder(tmp_path / "plain").manifest.facts
    with pytest.warns(UserWarning, match="post-processed pictures"):
        assert "UnsharpMask" in Folder(tmp_path / "sharp").manifest.facts["postprocess"]
