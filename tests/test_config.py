"""Configuration: a mistake is one line with the key that was meant and exit code 2; no target runs unasked."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from mistakes import draw
from omegaconf import OmegaConf

from genlab.cli import cross, schema, targets
from genlab.cli.arguments import fits
from genlab.cli.check import check_node
from genlab.cli.compose import compose_config
from genlab.cli.hydra_main import hydra_main
from genlab.cli.problem import Problem, nearest
from genlab.cli.redact import HIDDEN, redact
from genlab.cli.signature import Definition, Value, find, look_up, signature
from genlab.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
Run = Callable[..., tuple[Any, str, list[Any]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs an entry point with a body of the test's own: (exit code, stderr, seeds of the bodies that ran)."""
    monkeypatch.chdir(tmp_path)

    def go(
        *arguments: str, body: Callable[[Any], Any] = lambda cfg: None, entry: str = "train"
    ) -> tuple[Any, str, list]:
        ran: list[Any] = []

        @hydra_main(entry, CONF, free=("condition", "sampler") if entry == "sample" else ())
        def main(cfg: Any) -> Any:
            """Summary."""
            ran.append(cfg.seed)
            return body(cfg)

        monkeypatch.setattr(sys, "argv", [f"{entry}.py", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as leave:
            code = leave.code
        return code, capsys.readouterr().err, ran

    return go


# ---- one line, exit 2, the nearest key

MISTAKES = [
    # unknown keys
    ("schedul.max_samples=3", "Did you mean schedule.max_samples?"),
    ("schedule.max_sample=3", "Did you mean schedule.max_samples?"),
    ("schedule.evalevery=3", "Did you mean schedule.eval_every?"),
    ("trainer.device=2", "Did you mean trainer.devices?"),
    ("trainer.acumulate_grad_batches=2", "Did you mean trainer.accumulate_grad_batches?"),
    ("batch_size=2", "Did you mean data.batch_size?"),
    ("model.batch_size=2", "Did you mean data.batch_size?"),
    ("lr=0.1", "Did you mean optimizer.lr?"),
    ("optimizer.weightdecay=0.1", "Did you mean optimizer.weight_decay?"),
    ("optimizer.amsgrad=true", "add it with a plus sign: +optimizer.amsgrad=VALUE"),
    ("callbacks.ema.dekay=0.5", "Did you mean callbacks.ema.decay?"),
    ("callbacks.sample.count=4", "Did you mean callbacks.samples.count?"),
    ("modle=gan", "Did you mean model?"),
    ("sead=1", "Did you mean seed?"),
    ("rundir=x", "Did you mean runs_dir?"),
    ("generator.width=8", "Did you mean model.generator.width?"),
    ("model.generator.widht=8", "Did you mean model.generator.width?"),
    ("+model.generator.widht=8", "Did you mean model.generator.width?"),
    ("+data.batchsize=8", "Did you mean data.batch_size?"),
    ("+trainer.max_epoch=8", "Did you mean trainer.max_epochs?"),
    ("+resumee=never", "Did you mean resume?"),
    # unknown options
    ("model=gann", "Did you mean model=gan?"),
    ("data=mnst", "Did you mean data=mnist?"),
    ("model/objective=hing", "Did you mean model/objective=hinge?"),
    ("trainer=dbug", "Did you mean trainer=debug?"),
    # types
    ("schedule.max_samples=abc", "schedule.max_samples must be an integer, is 'abc' (command line)"),
    ("seed=1.5", "seed must be an integer"),
    ("optimizer.lr=fast", "optimizer.lr must be a number"),
    ("optimizer.betas=[0.9]", "optimizer.betas must be a list of 2"),
    ("data.shape=28", "data.shape must be a list"),
    ("data.batch_size=big", "data.batch_size must be an integer"),
    ("callbacks.ema.ramp=3", "callbacks.ema.ramp must be a boolean"),
    ("compile=maybe", "compile must be a boolean"),
    ("model.penalty=[1]", "model.penalty: cannot be [1]"),
    # ranges
    ("schedule.max_samples=-1", "schedule.max_samples must be > 0, is -1"),
    ("schedule.warmup=-1", "schedule.warmup must be >= 0"),
    ("optimizer.lr=0", "optimizer.lr must be > 0"),
    ("optimizer.betas=[0.5,1.5]", "optimizer.betas[1] must be >= 0 and < 1, is 1.5 (command line)"),
    ("seed=-1", "seed must be greater than or equal to 0"),
    ("callbacks.ema.decay=1.5", "callbacks.ema.decay must be less than or equal to 1"),
    ("data.val_fraction=1.0", "data.val_fraction must be"),
    ("trainer.devices=0", "trainer.devices must be > 0"),
    # choices
    ("schedule.decay=cosin", "Did you mean cosine?"),
    ("weights=emma", "weights must be 'ema' or 'raw', is 'emma'"),
    ("callbacks.checkpoint.mode=minimum", "callbacks.checkpoint.mode must be 'min' or 'max'"),
    ("trainer.precision=bf17", "trainer.precision must be"),
    ("trainer.accelerator=gpuu", "trainer.accelerator must be one of auto, cpu, gpu"),
    ("+trainer.strategy=dpp", "Did you mean ddp?"),
    # syntax, missing values, interpolations
    ("model=[", "cannot parse 'model=['"),
    ("nothing", "cannot parse 'nothing'"),
    ("seed=1,2", "seed is given several values (command line). Add -m for a sweep, or write seed=[1,2] for a list"),
    ("--fast", "unrecognized arguments: --fast"),
    ("schedule.max_samples=???", "Give schedule.max_samples=VALUE"),
    ("schedule.max_samples=${schedul.save_every}", "Did you mean schedule.save_every?"),
    ("name=${nowhere}", "nowhere, which does not exist"),
    # across nodes: both keys
    ("data.batch_size=129 trainer.devices=4", "data.batch_size must be a multiple of trainer.devices = 4, is 129"),
    ("data.batch_size=130 trainer.devices=2 trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches = 4"),
    ("data=shakespeare_char", "model.num_classes is taken from data.num_classes, which the chosen data does not have"),
    ("model.num_classes=${data.num_clases}", "Did you mean data.num_classes?"),
    ("hydra.sweper=x", "unknown key 'hydra.sweper'"),
    ("data=npz", "Give data.path=VALUE"),
    ("model=ddpm_unet data=mnist", "model.network.down_block_types: has 4 levels"),
    ("data.num_classes=null model.num_classes=10", "data.num_classes=None"),
    # targets
    ("model._target_=genlab.models.gan.GNA", "Did you mean genlab.models.gan.GAN?"),
    ("model._target_=torch.nn.Linear", "is not a TrainedModel"),
    ("optimizer._target_=torch.nn.Linear", "is not a Optimizer"),
    ("callbacks.extra=[{_target_:torch.nn.ReLU}]", "is not a Callback"),
    ("+model._args_=[1]", "_args_ is not allowed"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[m[0] for m in MISTAKES])
@pytest.mark.faults(22)
def test_a_mistake_is_one_line(run: Run, arguments: str, expected: str) -> None:
    code, err, ran = run("model=gan", *arguments.split(" "))
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("genlab: error: ")
    assert expected in err
    assert not ran
    assert "full_key" not in err
    assert "object_type" not in err


@pytest.mark.faults(22)
def test_a_group_that_the_chosen_model_does_not_have(run: Run) -> None:
    code, err, ran = run("model=ddpm", "model/penalty=r1")
    assert (code, ran, err.count("\n")) == (2, [], 1)
    assert "the chosen model has no model/penalty" in err


def test_drawn_mistakes(run: Run) -> None:
    """As `scripts/benchmark.py answers` gives them to real processes and takes the time."""
    right = 0
    for arguments, named in draw(seed=0, count=20):
        code, err, ran = run(*arguments)
        assert (code, err.count("\n"), ran) == (2, 1, []), (arguments, err)
        right += named in err
    assert right >= 18


def test_right_configurations_pass(run: Run) -> None:
    for arguments in (
        ["model=gan", "seed=4"],
        ["model=gan", "trainer.devices=2", "optimizer.lr=1e-3", "schedule.max_samples=1000", "seed=4"],
        ["--config-dir", str(CONF), "seed=4", "model=gan"],
    ):
        code, err, ran = run(*arguments)
        assert (code, err, ran) == (0, "", [4])
    assert not list(Path().iterdir())  # Hydra left no folder of its own


def test_free_nodes_need_no_plus(run: Run) -> None:
    seen: list[Any] = []
    code, err, _ = run(
        "run=x", "condition.label=3", "n=2", body=lambda cfg: seen.append(cfg.condition.label), entry="sample"
    )
    assert (code, err, seen) == (0, "", ["3"]), "text: a condition makes of it what it is"
    assert run("run=x", "n=0", entry="sample")[0] == 2


def test_values_need_no_quotes_of_hydras(run: Run) -> None:
    for value in ("数据 集/a=b", "it's", 'say "x"', "back\\slash", "a#b", "(x", "50%", "~/x", "C:\\x\\"):
        seen: list[Any] = []
        code, err, _ = run("model=gan", f"runs_dir={value}", body=lambda cfg, seen=seen: seen.append(cfg.runs_dir))
        assert (code, err, seen) == (0, "", [value])


def test_broken_yaml_of_a_users_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "broken.yaml").write_text("_target_: x\n  a: [1\n")
    code, err, ran = run("--config-dir", str(tmp_path / "own"), "model=broken")
    assert (code, ran) == (2, [])
    assert "broken.yaml, line 2" in err
    assert err.count("\n") == 1


@pytest.mark.faults(16)
def test_pickles_are_not_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.pickle").write_bytes(b"cos\nsystem\n(S'touch marker'\ntR.")
    assert run("--experimental-rerun", "config.pickle")[0] == 2
    assert not (tmp_path / "marker").exists()


def test_exit_codes_of_the_body(run: Run) -> None:
    def bad_data(cfg: Any) -> None:
        raise DataError("corrupt:\n line 3")

    def said_already(cfg: Any) -> None:
        raise SystemExit(70)

    def fault(cfg: Any) -> None:
        raise ValueError("ours")

    assert run("model=gan", body=bad_data)[:2] == (65, "genlab: error: corrupt: line 3\n")
    assert run("model=gan", body=said_already)[:2] == (70, "")
    code, err, _ = run("model=gan", body=fault)
    assert code == 1
    assert "Traceback" in err
    assert "ValueError: ours" in err


# ---- sweeps


def test_a_sweep_is_checked_before_its_first_job(run: Run) -> None:
    code, err, ran = run("model=gan", "-m", "seed=1,2", "schedule.max_samples=5,-1")
    assert code == 2
    assert err.count("\n") == 1
    assert "schedule.max_samples must be > 0, is -1 (job 1: model=gan seed=1 schedule.max_samples=-1)" in err
    assert not ran
    assert run("model=gan", "-m", "seed=1,2", "data=nope")[0] == 2
    assert not list(Path().rglob("*"))


@pytest.mark.faults(28)
def test_jobs_of_a_sweep_fail_alone(run: Run) -> None:
    def body(cfg: Any) -> float:
        if cfg.seed == 2:
            raise DataError("bad")
        if cfg.seed == 3:
            sys.exit(70)
        if cfg.seed == 4:
            raise ValueError("ours")
        return cfg.seed / 2

    code, err, ran = run("-m", "model=gan", "seed=1,2,3,4,5", body=body)
    assert ran == [1, 2, 3, 4, 5]
    assert code == 65
    table = err[err.index("job  status") :].splitlines()
    assert [line.split()[:3] for line in table[1:6]] == [
        ["0", "finished", "0.5"],
        ["1", "exit", "65"],
        ["2", "exit", "70"],
        ["3", "exit", "1"],
        ["4", "finished", "2.5"],
    ]


def test_an_interrupted_sweep_stops(run: Run) -> None:
    def body(cfg: Any) -> None:
        raise SystemExit(130)

    code, _, ran = run("-m", "model=gan", "seed=1,2", body=body)
    assert (code, ran) == (130, [1])


# ---- targets

HOSTILE = [
    "os.system", "builtins.open", "builtins.exec", "subprocess.Popen", "pathlib.Path.touch", "shutil.rmtree",
    "torch.load", "torch.hub.load", "numpy.load", "functools.partial", "hydra.utils.get_method",
    "hydra.utils.instantiate", "hydra._internal.utils._locate", "logging.os.system", "posix.system", "runpy.run_path",
    "genlab.samples.torch.load", "genlab.cli.sweep.sys.exit", "genlab.cli.build.load_config", "genlab.errors.os.system",
    "genlab.models.gan.GAN.load_from_checkpoint", "genlab.runs.directory.create_run", "genlab.data.fetch.fetch",
    "torch.nn.modules.module.torch.load", "torch.nn.init.zeros_", "torch.optim.swa_utils.torch.load",
    "pytorch_lightning.utilities.rank_zero.rank_zero_only", "pytorch_lightning.trainer.trainer.os.system",
    "diffusers.DiffusionPipeline", "diffusers.models.modeling_utils.os.system", "transformers.pipeline",
    "transformers.AutoModel.from_pretrained", "transformers.models.auto.modeling_auto.AutoModel", "", "x", "..", 3,
]  # fmt: skip


@pytest.mark.faults(23)
@pytest.mark.parametrize("target", HOSTILE, ids=str)
def test_hostile_targets_are_refused_unexecuted(target: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for node in (
        {"_target_": target, "command": f"touch {marker}", "file": str(marker), "mode": "w"},
        {"_target_": "torch.nn.ReLU", "inplace": {"_target_": target, "command": f"touch {marker}"}},
        {"_target_": "genlab.objectives.penalties.R1", "gamma": [{"_target_": target, "_partial_": True}]},
        {"a": {"_target_": "${b}"}, "b": target, "c": {"_target_": "torch.nn.ReLU"}},
    ):
        config = OmegaConf.create(node)
        with pytest.raises(ConfigError) as refusal:
            targets.instantiate(config)
        assert refusal.value.exit_code == 2
        with pytest.raises(ConfigError):
            check_node(OmegaConf.to_container(config, resolve=True), "model")
    assert not marker.exists()


@pytest.mark.faults(23)
def test_hostile_target_on_the_command_line(run: Run, tmp_path: Path) -> None:
    code, err, ran = run("model=gan", "model.objective._target_=os.system", "+model.objective.command='touch marker'")
    assert (code, ran) == (2, [])
    assert "'os.system' is not allowed" in err
    assert "GENLAB_ALLOW" in err
    assert not Path("marker").exists()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's package, of a name that no other test uses."""
    name = f"user_{abs(hash(str(tmp_path)))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(
        "from .inner import Renamed as Shown\n"
        "import os\n"
        "def make(width: int = 3):\n    return {'width': width}\n"
        "class Disguised:\n    pass\n"
        "Disguised = os.system\n"
    )
    (tmp_path / name / "inner.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, field, KW_ONLY\n"
        "from typing import Annotated, ClassVar, Literal, TypedDict, Unpack\n"
        "Kind = Literal['linear', 'cosine']\n"
        "Count = Annotated[int, 'ge 1, le 9']\n"
        "class Options(TypedDict, total=False):\n    depth: int\n    kind: Kind\n"
        "class Base:\n"
        "    def __init__(self, width: Count, **options: Unpack[Options]): self.width, self.options = width, options\n"
        "class Renamed(Base):\n"
        "    def __init__(self, extra: float | None = None, **rest):\n"
        "        super().__init__(**rest)\n        self.extra = extra\n"
        "class Fixed(Base):\n"
        "    def __init__(self, **rest):\n        super().__init__(width=2, **rest)\n"
        "class Free(Base):\n    def __init__(self, **rest):\n        self.rest = rest\n"
        "@dataclass\nclass Record:\n"
        "    a: int\n    shared: ClassVar[int] = 0\n    b: list[int] = field(default_factory=list)\n"
        "    hidden: int = field(init=False, default=0)\n"
        "@dataclass\nclass Child(Record):\n    c: Kind = 'linear'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_user_packages_come_from_the_environment_only(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"_target_": f"{package}.Shown", "width": 4, "depth": 2}
    with pytest.raises(ConfigError, match="GENLAB_ALLOW"):
        targets.instantiate(node)
    monkeypatch.setenv("GENLAB_ALLOW", f"other, {package}")
    made = targets.instantiate(node, extra=0.5)
    assert (type(made).__name__, made.width, made.options, made.extra) == ("Renamed", 4, {"depth": 2}, 0.5)
    assert targets.instantiate({"_target_": f"{package}.make", "width": 5}) == {"width": 5}
    partial = targets.instantiate({"_target_": f"{package}.Shown", "_partial_": True, "depth": 2})
    assert partial(width=1).options == {"depth": 2}
    nested = targets.instantiate({"list": [node, 1], "x": None})
    assert nested["list"][0].width == 4
    assert (nested["list"][1], nested["x"]) == (1, None)
    for hidden in ("Disguised", "os.system", "os"):
        with pytest.raises(ConfigError):
            targets.instantiate({"_target_": f"{package}.{hidden}", "command": "false"})
    with pytest.raises(ConfigError, match="is not a int"):
        targets.instantiate(node, int)


def test_arguments_are_read_from_source(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_ALLOW", package)
    inner = f"{package}.inner"

    def fault(cls: str, **arguments: Any) -> str:
        try:
            check_node({"_target_": f"{inner}.{cls}", **arguments}, "n")
        except Problem as problem:
            return str(problem)
        return ""

    assert fault("Renamed", width=3, depth=1, kind="cosine", extra=1) == ""
    assert "Did you mean n.depth?" in fault("Renamed", width=3, dept=1)
    assert "n.width must be an integer >= 1 and <= 9, is 10" in fault("Renamed", width=10)
    assert "n.kind must be one of linear, cosine, is 'cosin'. Did you mean cosine?" in fault(
        "Renamed", width=1, kind="cosin"
    )
    assert "needs 'width'" in fault("Renamed")
    assert fault("Renamed", _partial_=True) == ""
    assert fault("Renamed", width=1, extra="x").startswith("n.extra must be a number or null")
    assert fault("Fixed") == ""
    assert "takes no 'width'" in fault("Fixed", width=3)
    assert fault("Free", anything=1) == ""
    assert fault("Child", a=1, b=[1], c="cosine") == ""
    assert "takes no 'hidden'" in fault("Child", a=1, hidden=1)
    assert "takes no 'shared'" in fault("Child", a=1, shared=1)
    assert "needs 'a'" in fault("Child")
    assert "a list with an integer at place 1" in fault("Child", a=1, b=[1, "x"])
    assert "_convert_ must be" in fault("Child", a=1, _convert_="none")
    assert inner not in sys.modules
    assert package not in sys.modules


def test_signatures_equal_those_of_python() -> None:
    """Against inspect.signature, for what our configs name."""
    names = [
        "torch.optim.AdamW", "torch.optim.adam.Adam", "torch.nn.Linear", "pytorch_lightning.Trainer",
        "pytorch_lightning.loggers.CSVLogger", "diffusers.models.unets.unet_2d.UNet2DModel", "diffusers.UNet2DModel",
        "transformers.models.gpt2.configuration_gpt2.GPT2Config", "genlab.models.gan.GAN",
        "transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel", "genlab.models.schedule.Schedule",
    ]  # fmt: skip
    for name in names:
        found = find(name)
        assert isinstance(found, Definition)
        real = inspect.signature(targets._load(found, name, "", None)).parameters.values()
        expected = {p.name: p.default is p.empty for p in real if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        read = {p.name: p.required for p in signature(found).parameters.values()}
        if "GPT2Config" in name:  # transformers' decorator takes any keyword as well; a typo must not pass for one
            expected.pop("self", None)
            read = {k: v for k, v in read.items() if k in expected}
        assert read == expected, name


def test_bases_exist() -> None:
    for name in {*schema.BASES.values(), *(base for _, bases in targets.LIBRARIES for base in bases)}:
        found = find(name)
        assert isinstance(found, Definition), name
        assert found.name == name or name == "torch.nn.Module"


def test_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ast

    def ok(value: Any, text: str) -> bool:
        return fits(value, ast.parse(text, mode="eval").body, "genlab.models.schedule")[0]

    for good, bad, text in (
        (3, 3.0, "int"), (3, True, "int"), (3, "3", "float"), (True, 1, "bool"), ("a", 1, "str"), (None, 1, "None"),
        (None, "x", "int | None"), (2, "x", "Optional[int]"), ([1, 2], [1, 2, 3], "tuple[int, int]"),
        ([1, 2, 3], ["a"], "tuple[int, ...]"), ([1], 1, "Sequence[int]"), ({"a": 1}, [1], "dict[str, int]"),
        ("cosine", "cos", "Decay"), (1, True, "Literal[1, 2]"), ("16", "17", "Literal['16'] | int"),
        (0.5, 1.5, "Annotated[float, 'ge 0, lt 1']"), ("x", 3, "'str'"), ({"_target_": "x"}, 1, "nn.Module"),
        (1e-3, "x", "float | Tensor"),
    ):  # fmt: skip
        assert ok(good, text), (good, text)
        assert not ok(bad, text), (bad, text)
    assert ok("whatever", "SomethingUnknown[int]")
    assert isinstance(look_up("genlab.models.schedule", "Decay"), Value)


# ---- the parts


def test_nearest() -> None:
    keys = ["data.batch_size", "model.width", "trainer.devices", "optimizer.lr", "seed"]
    assert nearest("model.batch_size", keys) == "data.batch_size"
    assert nearest("trainer.device", keys) == "trainer.devices"
    assert nearest("trainr.devices", keys) == "trainer.devices"
    assert nearest("zzz", keys) is None


def test_cross_checks() -> None:
    good = {
        "data": {"batch_size": 64, "shape": [3, 32, 32], "num_classes": 10},
        "trainer": {"devices": [0, 1], "accumulate_grad_batches": 4},
        "model": {"num_classes": 10, "network": {"sample_size": 32}},
    }
    cross.check(good)
    for change, keys in (
        ({"data": {**good["data"], "batch_size": 60}}, ("data.batch_size", "trainer.accumulate_grad_batches")),
        ({"model": {"num_classes": 11, "network": {"num_class_embeds": 9}}}, ("num_class_embeds", "data.num_classes")),
        ({"data": {**good["data"], "num_classes": None}}, ("model.num_classes", "data.num_classes")),
        ({"data": {**good["data"], "shape": [1, 28, 28]}}, ("model.network.sample_size", "data.shape")),
        (
            {"model": {"net": {"patch": 2, "inner": {"down_block_types": ["a"] * 6}}}},
            ("down_block_types", "data.shape"),
        ),
    ):
        with pytest.raises(Problem) as found:
            cross.check({**good, **change})
        assert all(key in str(found.value) for key in keys)


@pytest.mark.faults(30)
def test_redaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    secret = {
        "logger": {"wandb": {"api_key": "abc", "project": "genlab"}},
        "list": [{"HF_TOKEN": "x"}, "key is 0123456789abcdef0123."],
        "url": "https://me:pass@host/x",
        "tokenizer": "bpe", "eos_token": "<eos>", "max_tokens": 3, "monkey": "see", "git": "a" * 40, "password": None,
    }  # fmt: skip
    assert redact(secret) == {
        "logger": {"wandb": {"api_key": HIDDEN, "project": "genlab"}},
        "list": [{"HF_TOKEN": HIDDEN}, f"key is {HIDDEN}."],
        "url": f"https://{HIDDEN}@host/x",
        "tokenizer": "bpe", "eos_token": "<eos>", "max_tokens": 3, "monkey": "see", "git": "a" * 40, "password": None,
    }  # fmt: skip


# ---- the shipped configs

OPTIONS = sorted(
    f"{p.parent.relative_to(CONF).as_posix()}={p.stem}"
    for p in CONF.rglob("*/[!_]*.yaml")
    if p.parent.name not in ("hydra", "chain")
)
# The contract test composes the first two, and trains them or their twins; test_postprocess the third, of sample.py;
# test_mel_diffusion a UNet that is told captions.
COMPOSED_ELSEWHERE = ("model=", "experiment=", "postprocess=", "model/network=mel_text_unet")
# Those that go with most options come first.
MODELS = list(dict.fromkeys(["gan", "gpt", "ddpm", *sorted(p.stem for p in (CONF / "model").glob("*.yaml"))]))


SUITED: dict[str, str] = {}  # the family that the last option of a group went with: it is tried first


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.startswith(COMPOSED_ELSEWHERE)])
def test_every_shipped_option_passes(option: str) -> None:
    """With its own defaults, or beside at least one of the families; what the user must give (`???`) is given."""
    group = option.partition("=")[0]
    given = {"shape": "[1,8,8]", "vocab_size": "9", "words": "[sea]"}
    faults = []
    for model in [""] if group == "hparams_search" else sorted(MODELS, key=lambda m: m != SUITED.get(group)):
        overrides = [option, f"model={model}"] if model else [option]
        if group == "feedback/reward":
            overrides.insert(0, "feedback=grpo")
        for _ in range(4):
            try:
                compose_config(CONF, "train", overrides)
                SUITED[group] = model
                return
            except ConfigCompositionException as other:  # a group that this model does not have, such as model/penalty
                faults.append(f"{model}: {other}")
                break
            except Problem as problem:
                faults.append(f"{model}: {problem}")
                needed = re.search(r"Give ([\w.]+)=VALUE", str(problem))
                if needed is None:
                    break
                if needed[1] == "data.dataset._target_":
                    return  # a class of the user's own
                overrides.append(f"{needed[1]}={given.get(needed[1].rpartition('.')[2], 'x')}")
    pytest.fail(f"{option}: {'; '.join(faults)}")


@pytest.mark.parametrize("entry", ["sample", "evaluate"])
def test_other_entry_points_pass(entry: str) -> None:
    assert compose_config(CONF, entry, ["run=x"]).run == "x"


# ---- as a process


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_mistake_costs_no_torch() -> None:
    done = shell("-X", "importtime", "train.py", "model=gan", "optimizer.lrr=1")
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert not imported & {"torch", "numpy", "pytorch_lightning", "torchvision", "diffusers", "transformers", "wandb"}
    assert [line for line in done.stderr.splitlines() if not line.startswith("import time:")] == [
        "genlab: error: unknown key 'optimizer.lrr' (command line). Did you mean optimizer.lr?"
    ]


def test_help_cfg_and_completion(tmp_path: Path) -> None:
    text = shell("train.py", "--help").stdout
    for option in OPTIONS:
        assert re.search(rf"^  {re.escape(option)} +\S", text, re.MULTILINE), f"{option} has no line of its own"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# A wider one.\ndefaults: [gan, _self_]\nchunk_size: 7\n")
    for folder in (["--config-dir", str(tmp_path)], [f"hydra.searchpath=[file://{tmp_path}]"]):
        assert re.search(r"^  model=mine +A wider one\.$", shell("train.py", "--help", *folder).stdout, re.MULTILINE)
        shown = OmegaConf.create(shell("train.py", *folder, "model=mine", "--cfg", "job").stdout)
        assert shown.model.chunk_size == 7
    shown = OmegaConf.create(shell("train.py", "model=gan", "seed=3", "--cfg", "job").stdout)
    assert (shown.seed, shown.model._target_) == (3, "genlab.models.gan.GAN")
    completed = shell("train.py", "-sc", "query=bash", COMP_LINE="python train.py data=mn", COMP_POINT="23")
    assert "data=mnist" in completed.stdout
