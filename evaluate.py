"""Evaluate a run: python evaluate.py run=RUN [evaluation=PROTOCOL] [sampler.KEY=VALUE]"""

from pathlib import Path

from omegaconf import DictConfig

from genlab.cli.hydra_main import hydra_main


@hydra_main("evaluate", Path(__file__).parent / "conf", free=("sampler",))
def main(config: DictConfig) -> float | None:
    """One protocol, one record: RUN/evaluation/PROTOCOL.json."""
    from genlab.cli.distributed import parallel

    return parallel("evaluate", config)


if __name__ == "__main__":
    main()
