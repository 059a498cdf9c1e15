#!/usr/bin/env python
"""Pictures of a folder, post-processed:
python scripts/postprocess.py images=FOLDER out=FOLDER postprocess=[deblock,enlarge_2]"""

from pathlib import Path

from omegaconf import DictConfig

from genlab.cli.hydra_main import hydra_main


@hydra_main("postprocess", Path(__file__).resolve().parent.parent / "conf")
def main(config: DictConfig) -> None:
    """Writes each image of a folder, enlarged or sharpened, as a PNG whose metadata name the steps."""
    from genlab.cli.build import build_steps
    from genlab.postprocess import process_folder

    steps = list(build_steps(config.postprocess).values())
    print(f"{process_folder(Path(config.images), Path(config.out), steps)} images in {config.out}")


if __name__ == "__main__":
    main()
