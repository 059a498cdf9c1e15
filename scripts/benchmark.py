"""Ratios measured side by side in one run: python scripts/benchmark.py WHAT [--out FILE.json]

Absolute times of a machine say little; what is compared here runs alternately on the same machine, and the median of
the ratios is given with their range.

    ranks      the default job (train.py) on two ranks against one rank, one thread each: samples a second
    kernels    CPU time of one thread: fused AdamW, GELU, seeding, keyed noise, each over its alternative
    noise      keyed noise against the network it feeds, for one sampling step of shipped experiments: share of the time
    answers    40 mistakes drawn from all groups of conf, each as a command: seconds to the answer, nearest keys right
    start      `python train.py` on a warm cache: seconds to the end of the first training step
    text       the same on a text of 200 MB against one of 1 MB, both with a warm cache; and the peak of memory
    protection what guards a run (finite gradients, checkpoints, signals) in the default job: share of training time
    seq2seq    experiment=marian_multi30k_cpu (--path DIR) against transformers' Seq2SeqTrainer, one thread, the same
               network, batches and optimizer: updates a CPU second, and the losses of both
    precision  forward and backward pass of four shipped networks in float32 over bf16-mixed, on a CPU: CPU time
    adapter    memory of a step of SmolLM2's adapter against that of a forward pass, 256 tokens
    latent     a text-to-image model against diffusers' training loop and pipeline with the same networks, one thread:
               images a CPU second in training and sampling
    enlarge    the enlarger of genlab.postprocess against the results in its package (--path DIR, unpacked);
               real pictures made small and enlarged again; CPU seconds a picture
    inception  inception-v3-compat-fast against inception-v3-compat, one thread: images a second
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))


def clock(function: Callable[[], Any], repeats: int, now: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = now()
        function()
        seconds.append(now() - began)
    return seconds[1:]


def summary(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "pairs": len(ratios)}


def ranks(repeats: int) -> dict[str, Any]:
    """Training speed of two ranks over one, each with one thread; without validation, samples or evaluation."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for devices, found in speeds.items():
            with tempfile.TemporaryDirectory() as folder:
                # Rows of 640 samples each; the first holds the start and is left out.
                quick = ["schedule.max_samples=3840", "schedule.log_every=640", "schedule.eval_every=0",
                         "schedule.save_every=0", "callbacks.samples.count=0", "callbacks.final.count=0",
                         "evaluation=none", "logger=none", "threads=1", "trainer.enable_progress_bar=false",
                         "data.limit_val=64", f"trainer.devices={devices}", f"runs_dir={folder}"]  # fmt: skip
                command = [sys.executable, str(ROOT / "train.py"), *quick]
                subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
                (path,) = Path(folder).glob("*/*/metrics.jsonl")
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                found.append(statistics.median([r["train/samples_per_s"] for r in rows if "train/lr" in r][1:]))
                print(f"{devices} rank(s): {found[-1]:.0f} samples/s", flush=True)
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    return {"samples_per_s": {str(k): v for k, v in speeds.items()}, "two over one": summary(ratios)}


def noise_share(repeats: int) -> dict[str, Any]:
    """Time of the noise of one sampling step over that of the step's network call, for one chunk, on one device."""
    import torch

    from genlab import noise
    from genlab.cli.build import build_model, choose_device
    from genlab.cli.compose import compose_config
    from genlab.noise import Stream

    device = choose_device()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    result: dict[str, Any] = {"device": str(device), "threads": torch.get_num_threads()}
    with torch.no_grad():
        for chosen, rows in (("model=ddpm", 16), ("experiment=ddpm_cifar10", 256 if device.type == "cuda" else 4)):
            config = compose_config(ROOT / "conf", "train", [chosen])
            model: Any = build_model(config).eval().to(device)
            seeds = torch.arange(rows, device=device)
            x = torch.randn(rows, *model.shape, device=device)
            t = torch.full((rows,), 500, device=device)
            label = seeds % model.num_classes if model.conditions else None

            def step(model: Any = model, x: Any = x, t: Any = t, label: Any = label) -> None:
                model(x, t, label)
                wait()

            def draw(seeds: Any = seeds, model: Any = model) -> None:
                noise.normal(seeds, (Stream.STEP, 0), model.shape)
                wait()

            pairs = [(clock(draw, 1)[0], clock(step, 1)[0]) for _ in range(repeats)]
            result[f"{chosen}, {rows} images"] = summary([a / b for a, b in pairs])
        config = compose_config(ROOT / "conf", "train", ["model=gpt"])
        network: Any = build_model(config).eval().to(device).network
        tokens, steps = torch.zeros(16, 1, dtype=torch.int64, device=device), 500
        cache = network(input_ids=tokens.expand(-1, 32), use_cache=True).cache
        seeds, k = torch.arange(16, device=device).repeat(steps), torch.arange(steps, device=device)
        drawn = clock(lambda: noise.uniform(seeds, (Stream.STEP, k.repeat_interleave(16)), ()), repeats)
        read = clock(lambda: network(input_ids=tokens, cache=cache, use_cache=True), repeats)
        shares = [a / steps / b for a, b in zip(drawn, read, strict=True)]
        result["model=gpt, 16 texts, a token"] = summary(shares)
    return result


def kernels(repeats: int) -> dict[str, Any]:
    """Ratios of CPU time (process_time) of one thread, which other jobs of a machine hardly change."""
    import torch
    from transformers.activations import ACT2FN

    from genlab import noise
    from genlab.callbacks.conductor import seed_all
    from genlab.cli.build import build_model
    from genlab.cli.compose import compose_config

    torch.set_num_threads(1)
    network: Any = build_model(compose_config(ROOT / "conf", "train", ["model=gpt"]))
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    fused, plain = (torch.optim.AdamW(network.parameters(), lr=1e-6, fused=choice) for choice in (True, None))
    x = torch.randn(12, 64, 512, requires_grad=True)  # what the feed-forward networks of that recipe hold

    def gelu(name: str) -> None:
        ACT2FN[name](x).sum().backward()

    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {
        "AdamW of model=gpt, fused over not": (fused.step, plain.step, 10),
        "GELU forward and backward, gelu_pytorch_tanh over gelu_new": (
            lambda: gelu("gelu_pytorch_tanh"), lambda: gelu("gelu_new"), 10,
        ),
        "seeding a batch over torch.manual_seed": (lambda: seed_all(0, 1, 0), lambda: torch.manual_seed(1), 100),
    }  # fmt: skip
    for rows, n, calls in ((256, 3072, 2), (64, 784, 10)):
        draw = functools.partial(noise.normal, torch.arange(rows), (noise.Stream.STEP, 0), (n,))
        cases[f"keyed noise {rows} x {n} over torch.randn"] = draw, functools.partial(torch.randn, rows, n), calls
    result: dict[str, Any] = {}
    for name, (ours, theirs, calls) in cases.items():
        both = [[clock(each, calls, time.process_time) for each in (ours, theirs)] for _ in range(repeats)]
        pairs = [(statistics.mean(a), statistics.mean(b)) for a, b in both]
        milliseconds = 1e3 * statistics.median(a for a, _ in pairs)
        result[name] = summary([a / b for a, b in pairs]) | {"milliseconds": milliseconds}
    return result


def inception(repeats: int) -> dict[str, Any]:
    """Images a second of the two forms of Inception-v3, and how far their features lie apart."""
    import torch

    from genlab import noise
    from genlab.evaluation import load_extractor

    torch.set_num_threads(1)
    images = (noise.uniform(torch.arange(40), 99, (3, 32, 32)) * 256).to(torch.uint8)
    plain, fast = (load_extractor(name, batch=20) for name in ("inception-v3-compat", "inception-v3-compat-fast"))
    ratios = []
    for _ in range(repeats):
        slow_s, fast_s = (clock(lambda e=e: e.features(images), 1)[0] for e in (plain, fast))  # type: ignore[misc]
        ratios.append(slow_s / fast_s)
        print(f"{len(images) / slow_s:.1f} and {len(images) / fast_s:.1f} images/s", flush=True)
    apart = (plain.features(images)["features"] - fast.features(images)["features"]).abs().max()
    return {"fast over plain": summary(ratios), "largest difference of a feature": float(apart)}


def answers(repeats: int) -> dict[str, Any]:
    """What a user waits for after a mistake: a line, exit code 2, the key that was meant."""
    sys.path.insert(0, str(ROOT / "tests"))
    from mistakes import draw

    seconds, right, other = [], 0, []
    for arguments, named in draw(seed=0, count=40):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments], capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        one_line = done.returncode == 2 and done.stderr.count("\n") == 1
        right += one_line and named in done.stderr
        if not one_line:
            other.append(arguments)
    return {"seconds": summary(seconds), "named what was meant": right, "no line or another exit code": other}


def first_step(options: list[str]) -> tuple[float, float]:
    """Seconds from the command to the row of the first step, W&B offline as it is without a login; and the peak of
    memory until then of the process that trains, GiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *options, f"runs_dir={folder}"]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env={**os.environ, "WANDB_MODE": "offline"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while not any(path.stat().st_size for path in Path(folder).glob("*/*/metrics.jsonl")):
            if process.poll() is not None:
                raise SystemExit(f"train.py has ended: {process.communicate()[0].decode()}")
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        peak = max(int(Path(f"/proc/{i}/status").read_text().split("VmHWM:")[1].split()[0]) for i in tree(process.pid))
        process.terminate()
        process.communicate()
        return seconds, peak / 2**20


def tree(process: int) -> list[int]:
    """A process and all that it has started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(i for child in children for i in tree(int(child)))]


def start(repeats: int) -> dict[str, Any]:
    """From the command to the row of the first step."""
    found = [first_step(["schedule.log_every=64"]) for _ in range(repeats + 1)]  # the first warms the cache
    return {"seconds to the first step": summary([seconds for seconds, _ in found[1:]])}


def text(repeats: int) -> dict[str, Any]:
    """Tiny Shakespeare against itself many times over. The first start of each makes the token files."""
    from genlab.data.fetch import fetch, find

    source = (fetch("tiny_shakespeare") / find("tiny_shakespeare").files[0].name).read_bytes()
    found: dict[str, list[tuple[float, float]]] = {"small": [], "large": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, times in (("small", 1), ("large", 200_000_000 // len(source))):
            Path(folder, f"{name}.txt").write_bytes(source * times)
        for _ in range(repeats + 1):
            for name, starts in found.items():
                data = ["data=text_file", f"data.path={folder}/{name}.txt", "data.vocab_size=65"]
                quick = ["model=gpt", "schedule.log_every=12", "data.limit_val=64", "threads=1"]
                starts.append(first_step([*quick, *data]))
                print(f"{name}: {starts[-1][0]:.1f} s, {starts[-1][1]:.3f} GiB", flush=True)
    pairs = list(zip(found["large"][1:], found["small"][1:], strict=True))
    return {
        "first start of the large text, s": found["large"][0][0],
        "seconds to the first step, large over small": summary([a[0] / b[0] for a, b in pairs]),
        "peak of memory, large over small": summary([a[1] / b[1] for a, b in pairs]),
        "peak of memory of the small, GiB": summary([b[1] for _, b in pairs]),
    }


def protection(repeats: int) -> dict[str, Any]:
    """The time inside the guard and the saver over that of training, in the same run of the default job; each repeat is
    one run. The first checkpoint, before training, is not counted."""
    from genlab.callbacks.guard import FiniteGuard
    from genlab.callbacks.saver import Saver
    from genlab.cli.compose import compose_config
    from genlab.cli.session import train_session
    from genlab.models import trained
    from genlab.runs.directory import create_run

    spent = {"guard": 0.0, "saver": 0.0, "training": 0.0}

    def timed(owner: Any, name: str, key: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[key] += time.perf_counter() - began

        setattr(owner, name, outer)

    timed(trained, "keep_finite", "guard")
    timed(FiniteGuard, "on_train_batch_start", "guard")
    timed(FiniteGuard, "on_train_batch_end", "guard")
    timed(Saver, "on_train_batch_end", "saver")
    shares: dict[str, list[float]] = {"guard": [], "saver": [], "both": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            config = compose_config(ROOT / "conf", "train", ["model=ddpm", "evaluation=none", "logger=none"])
            config.schedule.update({"max_samples": 2 * config.schedule.save_every, "eval_every": 0})
            config.callbacks.samples.count = config.callbacks.final.count = 0
            config.trainer.enable_progress_bar = False
            config.update({"runs_dir": folder, "name": "protection"})
            config.data.limit_val = 64
            config.pop("debug", None)
            run = create_run(Path(folder), "protection", "0")
            from omegaconf import OmegaConf

            OmegaConf.save(config, run.config, resolve=True)
            spent.update(dict.fromkeys(spent, 0.0))
            train_session(run)
            rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
            training = [row["time"] for row in rows if "train/lr" in row]
            samples = [row["samples"] for row in rows if "train/lr" in row]
            seconds = (training[-1] - training[0]) * samples[-1] / (samples[-1] - samples[0])
            for key in ("guard", "saver"):
                shares[key].append(spent[key] / seconds)
            shares["both"].append((spent["guard"] + spent["saver"]) / seconds)
            print({key: f"{found[-1]:.2%}" for key, found in shares.items()}, f"of {seconds:.0f} s", flush=True)
    return {f"share of {key}": summary(found) for key, found in shares.items()}


def beside(name: str) -> Callable[..., dict[str, Any]]:
    """The row that a script of its own beside this one measures."""
    return lambda *arguments, **options: importlib.import_module(f"benchmark_{name}").compared(*arguments, **options)


def latent(repeats: int) -> dict[str, Any]:
    return {name: summary(ratios) for name, ratios in beside("latent")(repeats).items()}


def enlarge(repeats: int, path: Path) -> dict[str, Any]:
    """PSNR of the enlarger's network against its package's own results; of real pictures that are made smaller (by
    bicubic with antialiasing) and enlarged again, beside other ways; and CPU seconds of a picture of 64x64."""
    import torch
    import torch.nn.functional as F

    from genlab.cli.build import ready_data
    from genlab.cli.compose import compose_config
    from genlab.evaluation.reference import real_batch, real_items
    from genlab.modality import Image
    from genlab.postprocess import Enlarge, Lanczos

    def psnr(x: torch.Tensor, y: torch.Tensor) -> float:
        return round(float(10 * torch.log10(255**2 / (x.double() - y.double()).square().mean())), 2)

    def bicubic(images: torch.Tensor, scale: float) -> torch.Tensor:
        return F.interpolate(images.float(), scale_factor=scale, mode="bicubic", antialias=True)

    def pixels(images: torch.Tensor) -> torch.Tensor:
        return images.clamp(0, 255).round().to(torch.uint8)

    torch.set_num_threads(1)
    fixture, result = Image().read(path / "assets" / "fixture.png")[None], dict[str, Any]()
    one = fixture[..., 32:96, 32:96].contiguous()
    for scale in (2, 3, 4):
        theirs = Image().read(path / "assets" / "samples" / f"{scale}x" / "result.png")[None]
        whole, alone = Enlarge(scale=scale), Enlarge(scale=scale, border=0, back_projections=0)
        seconds = clock(lambda step=whole: step(one), repeats, time.process_time)  # type: ignore[misc]
        result[f"x{scale}"] = {
            "PSNR of the network alone against the package": psnr(alone(fixture), theirs),
            "PSNR of bicubic against it": psnr(pixels(bicubic(fixture, scale)), theirs),
            "CPU seconds of 64x64": round(statistics.median(seconds), 4),
        }
        for name in ("emoji", "cifar10", "fashion_mnist"):
            data = ready_data(compose_config(ROOT / "conf", "evaluate", [f"data={name}"]))
            source, ids = real_items(data, "test", 256, name)
            images = real_batch(source, ids)["item"]
            side = images.shape[2] // scale * scale
            images = images[..., :side, :side]
            small = pixels(bicubic(images, 1 / scale))
            large = bicubic(small, scale)
            projected = large + bicubic(small - bicubic(large, 1 / scale), scale)
            ways = {"bicubic": pixels(large), "Lanczos": Lanczos(scale=scale)(small)}
            ways |= {"bicubic, back-projected": pixels(projected)}
            ways |= {"network alone": alone(small), "Enlarge": whole(small)}
            result[f"x{scale}"][f"PSNR of {len(images)} of {name}"] = {k: psnr(v, images) for k, v in ways.items()}
    return result


MEASURED: dict[str, Callable[..., dict[str, Any]]] = {
    "ranks": ranks, "kernels": kernels, "noise": noise_share, "inception": inception, "answers": answers,
    "start": start, "text": text, "protection": protection, "seq2seq": beside("seq2seq"), "latent": latent,
    "enlarge": enlarge, "adapter": beside("adapter"), "precision": beside("precision"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURED)
    parser.add_argument("--repeats", type=int, default=5, help="pairs that are measured")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    parser.add_argument("--path", type=Path, help="files of Multi30k, which seq2seq needs; or the package, for enlarge")
    arguments = parser.parse_args()
    options = {"path": arguments.path} if arguments.what in ("seq2seq", "enlarge") else {}
    measured = MEASURED[arguments.what](arguments.repeats, **options)
    result = {
        "what": arguments.what,
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load before": os.getloadavg()[0],
        **measured,
    }
    found = json.dumps(result, indent=1)
    print(found)
    if arguments.out:
        arguments.out.write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
