"""Train a generative model: python train.py [model=ddpm] [data=mnist] [trainer.devices=2] [KEY=VALUE ...]"""

from pathlib import Path

from omegaconf import DictConfig

from genlab.cli.hydra_main import hydra_main


@hydra_main("train", Path(__file__).parent / "conf")
def main(config: DictConfig) -> float | None:
    """Trains, samples, evaluates, and leaves a run directory. The same command continues a run that was cut short."""
    from genlab.cli.train import train

    return train(config)


if __name__ == "__main__":
    main()
