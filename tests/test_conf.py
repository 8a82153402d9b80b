"""Every file of conf/ composes and is judged good; each number has one home; bad values are named."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import rollout
from rollout.compose import load_config, to_yaml
from rollout.config import RunConfig
from rollout.errors import UserError

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
CHOICES = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment"
)
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))
CONFIG_MODULES = (
    "kvstore/config.py",
    "kvstore/mooncake_config.py",
    "kvstore/transport_config.py",
    "engines/cluster_config.py",
    "engines/config.py",
    "engines/model/profile.py",
    "engines/scheduling/settings.py",
    "rollout/config.py",
    "rollout/simulation_config.py",
    "rollout/controller_config.py",
    "rollout/sandbox/config.py",
    "rollout/serve/config.py",
    "rollout/tools/config.py",
    "rollout/trainer_config.py",
    "rollout/warm_start_config.py",
)


def error_of(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def fields_of(module: str) -> list[tuple[str, ast.AnnAssign, ast.stmt | None]]:
    """Each field of each dataclass in a file, with the statement that follows it."""
    found = []
    for node in ast.parse((ROOT / module).read_text()).body:
        if isinstance(node, ast.ClassDef):
            following = [*node.body[1:], None]
            found += [
                (f"{node.name}.{field.target.id}", field, after)
                for field, after in zip(node.body, following, strict=True)
                if isinstance(field, ast.AnnAssign) and not field.target.id.startswith("__")
            ]
    return found


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_choice_of_every_group_loads(group, option):
    more = {
        "warm_start": ["model.path=null"],
        "paced": ["model_profile=dsv32_660b"],
        "hf": [f"model.path={ROOT / 'tests/engines/model_configs/llama_8b.json'}"],
    }
    assert isinstance(load_config([f"{group}={option}", *more.get(option, [])]), RunConfig)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_loads_and_carries_its_name(experiment):
    assert load_config([f"experiment={experiment}"]).experiment == experiment


def test_every_file_of_conf_is_one_of_those():
    expected = {f"{group}/{option}" for group, option in CHOICES} | {f"experiment/{n}" for n in EXPERIMENTS}
    found = {str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*.yaml")}
    assert found == expected | {"config"}


def test_the_default_job_is_the_documented_one():
    config = load_config()
    assert config.job == "train"
    assert (config.task.prompts_per_step, config.task.group_size) == (4, 4)
    assert (config.engines.num_prefill_engines, config.engines.num_decode_engines) == (1, 2)
    assert (config.trainer.steps, config.ray.agent_workers) == (1, 2)
    assert config.kvstore.kind == "ssd"
    assert config.monitor.wandb == "offline"


def test_run_dir_names_the_job():
    assert load_config(["job=rollout"]).run_dir.startswith("runs/rollout-")
    assert load_config(["run_dir=here"]).run_dir == "here"


@pytest.mark.parametrize(
    "override",
    [
        "model.path=some/model",
        "task.path=tasks.jsonl",
        "kvstore.path=/some/where",
        "scheduler.read_plan=basic",
        "trainer.steps=3",
        "ray.address=auto",
        "num_agents=7",
        "resume=runs/earlier",
        "overwrite=true",
        "seed=5",
        "sandbox.kind=unsafe",
    ],
)
def test_an_override_of_the_run_contract_reaches_its_field(override):
    key, _, text = override.partition("=")
    value: object = load_config([override])
    for name in key.split("."):
        value = getattr(value, name)
    assert str(value).lower() == text


def test_a_group_choice_changes_what_it_names():
    assert [load_config(choice).transport.kind for choice in ([], ["transport=tcp"])] == ["auto", "tcp"]
    assert load_config(["monitor=wandb_online"]).monitor.wandb == "online"


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (1, 2), (2, 1), (2, 4)])
def test_a_cluster_preset_sets_nodes_and_rates(prefill, decode):
    config = load_config([f"cluster={prefill}p{decode}d"])
    assert (config.engines.prefill_nodes, config.engines.decode_nodes) == (prefill, decode)
    assert (config.engines.num_prefill_engines, config.engines.num_decode_engines) == (prefill, decode)
    assert config.cluster.cnic_bytes_per_s == 8 * config.cluster.snic_bytes_per_s
    assert load_config().cluster.snic_bytes_per_s is None


def test_an_override_beats_the_experiment():
    assert load_config(["experiment=tiny_rl", "trainer.steps=2"]).trainer.steps == 2


def test_tiny_rl_makes_its_own_model_and_tasks():
    config = load_config(["experiment=tiny_rl"])
    assert config.model.path is None
    assert config.model.warm_start is not None
    assert (config.task.environment, config.task.path) == ("chain_arithmetic", None)


@pytest.mark.parametrize("module", CONFIG_MODULES)
def test_a_field_has_a_meaning_beneath_it_and_no_default(module):
    fields = fields_of(module)
    assert fields
    for name, field, after in fields:
        assert field.value is None, f"{name} has a default; values live in conf/"
        assert isinstance(after, ast.Expr), f"{name} has no meaning beneath it"
        assert isinstance(after.value, ast.Constant), name


def test_the_configuration_is_frozen_and_slotted():
    config = load_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert not hasattr(config, "__dict__")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.grop_size=3"], ["task.grop_size", "did you mean task.group_size"]),
        (["zebra=blue"], ["unknown key zebra", "job", "seed"]),
        (["+task.colour=blue"], ["unknown key task.colour", "group_size"]),
        (["task.group_size=0"], ["task.group_size", ">= 1", "got 0"]),
        (["task.environment=chess"], ["task.environment", "word_problems", "module:Class", "chess"]),
        (["sandbox=cage"], ["sandbox=cage", "bubblewrap, unsafe"]),
        (["sandbox.processes=1"], ["sandbox.processes", ">= 8", "1"]),
        (["tools.attempts=0"], ["tools.attempts", ">= 1", "0"]),
        (["task.group_size=two"], ["task.group_size", "integer", "two"]),
        (["task.group_size=true"], ["task.group_size", "integer", "true"]),
        (["task.group_size=1.5"], ["task.group_size", "integer", "1.5"]),
        (["task.group_size='4'"], ["task.group_size", "integer", '"4"']),
        (["task.wall_time_s=nan"], ["task.wall_time_s", "> 0", "nan"]),
        (["task.wall_time_s=inf"], ["task.wall_time_s", "finite", "inf"]),
        (["seed=null"], ["seed", "integer", "null"]),
        (["num_agents=0"], ["num_agents", ">= 1", "0"]),
        (["job=sleep"], ["job=sleep", "doctor, plan, replay, rollout, serve, simulate, train"]),
        (["kvstore=tape"], ["kvstore=tape", "ssd"]),
        (["transport=pigeon"], ["transport=pigeon", "auto, nixl, shm, tcp, verbs"]),
        (["experiment=none"], ["experiment=none", "smoke, tiny_rl"]),
        (["kvstore.block_tokens=129"], ["kvstore.block_tokens", "1..128", "129"]),
        (["cluster.snic_bytes_per_s=0"], ["cluster.snic_bytes_per_s", "> 0", "null", "0"]),
        (["cluster.cnic_bytes_per_s=-5"], ["cluster.cnic_bytes_per_s", "> 0", "-5"]),
        (["cluster.h2d=fax"], ["cluster.h2d", "'cnic' or 'copy'", "fax"]),
        (["cluster=3p7d"], ["cluster=3p7d", "1p1d, 1p2d, 2p1d, 2p4d, local"]),
        (["engines=paced"], ["model_profile", "null"]),
        (["engines=paced", "engines.device=cuda"], ["engines.device", "cpu", "cuda"]),
        (["model_profile=gpt", "engines=paced"], ["model_profile=gpt", "dsv32_660b"]),
        (["model_profile=ds_27b", "model_profile.rest_s=[0,-1]"], ["model_profile.rest_s", ">= 0", "-1"]),
        (["engines.dtype=int4"], ["engines.dtype", "'float32' or 'bfloat16'", "int4"]),
        (["scheduler.read_plan=psychic"], ["scheduler.read_plan", "'basic'", "psychic"]),
        (["sampling.top_p=0"], ["sampling.top_p", "(0, 1]", "0"]),
        (["sampling.stop_strings=end"], ["sampling.stop_strings", "end"]),
        (["sampling.max_tokens=4096"], ["sampling.max_tokens", "task.max_context_tokens=1024", "4096"]),
        (["trainer.steps=-1"], ["trainer.steps", ">= 0", "-1"]),
        (["monitor.wandb=maybe"], ["monitor.wandb", "'offline', 'online' or 'off'", "maybe"]),
        (["model.path=null"], ["model.path", "null"]),
        (["experiment=tiny_rl", "model.path=here"], ["model.path", "warm_start", "here"]),
        (["experiment=tiny_rl", "model.warm_start.max_operators=0"], ["max_operators", "min_operators=1"]),
        (["task.group_size"], ["task.group_size", "key=value"]),
        (["task.group_size=[1"], ["task.group_size=[1", "key=value"]),
        (["task.group_size=1,2"], ["task.group_size=1,2", "[a,b]"]),
        (["task=[1,2]"], ["task=[1,2]"]),
        (["=3"], ["=3"]),
        (["~task"], ["task is missing"]),
        (["run_dir=${nowhere}"], ["nowhere", "run_dir"]),
        (["hydra.run.dir=here"], ["hydra.run.dir", "hydra.searchpath"]),
        (["hydra.searchpath=[pkg://no.such.package]"], ["hydra.searchpath", "no.such.package"]),
        (["task.group_size=0", "seed=x"], ["and 1 more"]),
    ],
)
def test_bad_input_is_one_line_that_names_key_value_and_what_would_do(overrides, words):
    message = error_of(*overrides)
    for word in words:
        assert word in message, message


def test_a_user_may_bring_experiments_of_their_own(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nexperiment: mine\nseed: 41\n")
    config = load_config([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
    assert (config.experiment, config.seed) == ("mine", 41)


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "torn.yaml").write_text("a: [\n")
    assert "torn.yaml" in error_of(f"hydra.searchpath=[file://{tmp_path}]", "experiment=torn")


def test_the_printed_configuration_says_every_value(tmp_path):
    config = load_config(["experiment=smoke", "seed=9"])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "again.yaml").write_text("# @package _global_\n" + to_yaml(config))
    again = load_config([f"hydra.searchpath=[file://{tmp_path}]", "experiment=again"])
    assert again == config


def test_another_hydra_application_keeps_its_state(tmp_path):
    from hydra import compose, initialize_config_dir

    (tmp_path / "theirs.yaml").write_text("colour: blue\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2", job_name="theirs"):
        assert rollout.load_config(["seed=3"]).seed == 3
        assert error_of("seed=x")
        assert compose("theirs").colour == "blue"


def test_every_public_name_that_is_listed_has_a_home():
    from rollout import _MODULE_OF

    assert set(_MODULE_OF) | {"__version__"} == set(rollout.__all__)
    for module in _MODULE_OF.values():
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="colour"):
        rollout.colour  # noqa: B018
