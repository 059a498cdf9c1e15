"""What tests and the processes forked from them import once: everything heavy that a worker needs."""

import importlib

for _name in (
    "genlab",  # before the others: its import hook lets torchvision load
    "genlab.cli.session",
    "genlab.callbacks.wandb_logger",
    "wandb.sdk.launch",  # it reads the environment anew in each process
    "matplotlib.figure",
    "genlab.cli.hydra_main",
    "genlab.cli.train",
    "genlab.cli.sample",
    "genlab.cli.evaluate",
    "diffusers.models.unets.unet_2d",
    "transformers.models.gpt2.modeling_gpt2",
    "torch.profiler",
):
    importlib.import_module(_name)
