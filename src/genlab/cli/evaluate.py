"""What evaluate.py calls."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from genlab.cli.build import set_threads
from genlab.cli.load import choose_sampler, load_run
from genlab.cli.targets import instantiate
from genlab.errors import ConfigError
from genlab.evaluation import evaluate, write_record


def lines_of(record: dict[str, Any]) -> list[str]:
    """The values of a record for a person, each with its floor or the reason why it is missing."""
    floor = (record.get("floor") or {}).get("values", {})
    width = max(map(len, record["values"]), default=0)
    lines = []
    for key, value in record["values"].items():
        shown = f"missing: {record['missing'][key]}" if value is None else f"{value:.6g}"
        beside = (
            f"   (real {record['floor']['samples']['split']}: {floor[key]:.6g})" if floor.get(key) is not None else ""
        )
        lines.append(f"{key:<{width}}  {shown}{beside}")
    return lines


def evaluate_run(config: DictConfig) -> float | None:
    """Evaluates one protocol, writes the record, prints its values; returns the first of them."""
    set_threads(config.threads)
    loaded = load_run(config.run, config.weights, config.checkpoint, config.device, config.runs_dir)
    protocol = instantiate(config.get("evaluation") or loaded.config.get("evaluation"))
    if protocol is None:
        raise ConfigError("evaluation: neither the command nor the run names a protocol; add evaluation=NAME.")
    sampler = choose_sampler(loaded, config.get("sampler"))
    context = {
        "run": loaded.directory.path.name,
        "model": str(loaded.config.name),
        "checkpoint": loaded.checkpoint.name,
    }
    record = evaluate(
        loaded.model,
        loaded.data(),
        protocol,
        sampler=sampler,
        weights=config.weights,
        seed=config.seed,
        context=context,
    )
    # Another sampler, checkpoint or seed is another number: it must not replace the run's own record.
    changed = [
        *([] if sampler is None else ["sampler"]),
        *([] if config.weights == "ema" else [config.weights]),
        *([] if config.checkpoint == "last" else [config.checkpoint]),
        *([] if config.seed == loaded.config.seed else [f"seed{config.seed}"]),
    ]
    name = "-".join([protocol.name, *changed, *([record["identity"][:8]] if changed else [])])
    path = loaded.directory.path / "evaluation" / f"{name}.json"
    write_record(record, path)
    print("\n".join(lines_of(record)))
    print(f"record: {path}")
    return next((v for v in record["values"].values() if v is not None), None)
