"""`python -m rollout` as a user runs it: what a job leaves behind, bad input, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rollout.__main__ import main
from rollout.records import read_trajectories
from rollout.types import NO_VERSION
from tests.rollout.wandb_file import read_wandb_file

pytestmark = pytest.mark.ray
SMOKE = ["experiment=smoke", "ray.agent_workers=1"]


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "rollout", *SMOKE, *overrides]


def run(*overrides: str, deadline_s: float = 150.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*overrides), capture_output=True, text=True, timeout=deadline_s, check=False
    )


@pytest.fixture(scope="module")
def finished_run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("job") / "run"
    done = run(f"model.path={tiny_model_dir}", f"run_dir={run_dir}", "monitor.wandb=offline")
    assert done.returncode == 0, done.stderr
    assert "JCT" in done.stdout
    return run_dir


def test_a_training_job_leaves_the_promised_summary(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["job"] == "train"
    assert [step["weights_version"] for step in summary["steps"]] == [0, 1]
    assert summary["num_trajectories"] == 8
    assert sum(summary["outcomes"].values()) == 8
    tokens = summary["tokens"]
    assert tokens["prompt"] == tokens["hit"] + tokens["miss"]
    assert summary["hit_rate"] == pytest.approx(tokens["hit"] / tokens["prompt"])
    assert summary["jct_s"] == pytest.approx(sum(step["jct_s"] for step in summary["steps"]))
    assert sum(summary["jct_breakdown"].values()) == pytest.approx(summary["jct_s"], rel=0.01)
    for name in ("ttft_s", "ttst_s", "tpot_s"):
        assert 0 < summary[name]["p50"] <= summary[name]["p99"]
    assert summary["kv"]["read_bytes"]["prefill_side"] > 0
    assert summary["kv"]["read_bytes"]["decode_side"] == 0
    assert summary["kv"]["written_bytes"] > 0
    assert {"torch", "ray", "transformers", "deepspeed"} <= set(summary["versions"])


def test_trajectories_are_readable_and_name_the_weights_that_sampled_them(finished_run: Path) -> None:
    for step in (0, 1):
        trajectories = read_trajectories(finished_run / "trajectories.parquet", step)
        assert len(trajectories) == 4
        for trajectory in trajectories:
            assert set(trajectory.segments[0].weights_versions) == {NO_VERSION, step}
            assert trajectory.phases.total == pytest.approx(trajectory.duration_s, rel=0.01)


def test_metrics_jsonl_and_wandb_hold_the_same_series(finished_run: Path) -> None:
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    series = {name for row in rows for name in row}
    assert {
        "rollout/jct_s",
        "rollout/jct_breakdown/kv_load_s",
        "rollout/ttft_s/p99",
        "kv/read_bytes/prefill_side",
        "train/loss",
        "train/logprob_diff/max",
        "train/importance_ratio/mean",
        "timing_s/gen",
    } <= series
    told = {name for row in read_wandb_file(finished_run).history for name in row}
    assert {name for row in rows[:-1] for name in row} <= told
    difference = [row["train/logprob_diff/max"] for row in rows if "train/logprob_diff/max" in row]
    assert max(difference) < 1e-4


def test_a_finished_run_is_not_overwritten_unless_told_to(
    finished_run: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished_run / "summary.json").read_bytes()
    assert main([*SMOKE, f"model.path={tiny_model_dir}", f"run_dir={finished_run}"]) == 2
    assert re.fullmatch(r"rollout: error: .*overwrite=true.*\n", capsys.readouterr().err)
    assert (finished_run / "summary.json").read_bytes() == before


def bad_model(tmp_path: Path, good: Path, kind: str) -> Path:
    folder = tmp_path / kind
    if kind == "missing":
        return folder
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    match kind:
        case "not-causal":
            config["model_type"], config["architectures"] = "t5", ["T5ForConditionalGeneration"]
        case "sliding":
            config |= {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
            config["layer_types"] = ["full_attention", "full_attention"] + ["sliding_attention"] * 2
        case "no-tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                (folder / name).unlink(missing_ok=True)
        case "no-weights":
            (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "missing is not a folder"),
        ("not-causal", "t5 model, which is not a causal language model"),
        ("sliding", "layer 2 "),
        ("no-tokenizer", "no usable tokenizer"),
        ("no-weights", "no weight files"),
    ],
)
def test_a_bad_model_folder_costs_one_line(
    kind: str, said: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bad_model(tmp_path, tiny_model_dir, kind)
    assert_refused(capsys, said, tmp_path / "run", f"model.path={folder}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ('{"prompt": "1+1?", "answer": 2}\n{"prompt": "2+2?"}\n', "line 2"),
    ],
)
def test_a_bad_task_file_costs_one_line(
    text: str | None, said: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    if text is not None:
        tasks.write_text(text)
    overrides = (f"model.path={tiny_model_dir}", f"task.path={tasks}")
    assert_refused(capsys, said, tmp_path / "run", *overrides)


def test_more_engines_than_memory_allows_cost_one_line(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (f"model.path={tiny_model_dir}", "engines.decode_engines_per_node=100000")
    assert_refused(capsys, "need about", tmp_path / "run", *overrides)


def test_a_run_dir_that_cannot_be_made_costs_one_line(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    run_dir = tmp_path / "file" / "run"
    assert_refused(capsys, str(run_dir), run_dir, f"model.path={tiny_model_dir}")


def assert_refused(capsys: pytest.CaptureFixture[str], said: str, run_dir: Path, *overrides: str) -> None:
    """Exit code 2, one line on stderr, nothing on stdout, nothing begun."""
    code = main([*SMOKE, f"run_dir={run_dir}", *overrides])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert re.fullmatch(r"rollout: error: [^\n]+\n", err), err
    assert said in err
    assert not (run_dir / "config.yaml").exists()


@contextmanager
def job_under_way(model_dir: Path, run_dir: Path, num_prompts: int = 200) -> Iterator[subprocess.Popen[str]]:
    """A long rollout of which some trajectories have finished."""
    overrides = [f"model.path={model_dir}", f"run_dir={run_dir}", "job=rollout", "num_agents=2"]
    many = [f"task.prompts_per_step={num_prompts}", "task.group_size=4", "task.max_turns=3"]
    job = subprocess.Popen(
        command(*overrides, *many), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert job.stderr is not None
    try:
        wait_for_line(job.stderr, re.compile(rf"[1-9]\d*/{4 * num_prompts} done"), deadline_s=120)
        yield job
    finally:
        job.kill()
        job.wait()


def family_of(job: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(job.pid)
    family = [parent, *parent.children(recursive=True)]
    assert len(family) > 3
    return family


def still_alive(family: list[psutil.Process], deadline_s: float) -> list[str]:
    """Names of those that have not ended by the deadline; whom nobody has waited for has ended too."""
    ends_s = time.monotonic() + deadline_s
    while True:
        alive = [process for process in family if _runs(process)]
        if not alive or time.monotonic() > ends_s:
            return [process.name() for process in alive]
        psutil.wait_procs(alive, timeout=0.1)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_ends_every_process_in_time_and_keeps_finished_trajectories(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with job_under_way(tiny_model_dir, run_dir) as job:
        family = family_of(job)
        interrupted_s = time.monotonic()
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=30) == 130
        assert still_alive(family, max(0.1, 5 - (time.monotonic() - interrupted_s))) == []
    kept = read_trajectories(run_dir / "trajectories.parquet")
    assert len(kept) >= 1
    for trajectory in kept:
        trajectory.segments[0].check()
    assert not (run_dir / "summary.json").exists()


def test_a_killed_job_leaves_no_process_and_no_shared_memory_behind(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    shared_before = set(os.listdir("/dev/shm"))
    with job_under_way(tiny_model_dir, tmp_path / "run") as job:
        # Ray's two agents hold no memory of ours, and take a minute to see that their node is gone.
        family = [process for process in family_of(job) if not process.name().endswith("Agent")]
        job.kill()
        assert still_alive(family, 60) == []
    assert set(os.listdir("/dev/shm")) <= shared_before


def wait_for_line(stream: object, pattern: re.Pattern[str], deadline_s: float) -> None:
    """Read lines until one matches; the job's own progress is a line every few seconds."""
    ends_s = time.monotonic() + deadline_s
    for line in stream:  # type: ignore[attr-defined]
        if pattern.search(line):
            return
        if time.monotonic() > ends_s:
            break
    raise AssertionError(f"no line matched {pattern.pattern}")


def test_a_killed_rollout_is_resumed_to_the_same_set_of_trajectories(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    with job_under_way(tiny_model_dir, run_dir, num_prompts=30) as job:
        job.kill()
    done = run(f"resume={run_dir}", "num_agents=8")
    assert done.returncode == 0, done.stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["num_trajectories"] == sum(summary["outcomes"].values()) == 120
    assert summary["resumed"]["ended"] > 0
    found = read_trajectories(run_dir / "trajectories.parquet", 0)
    wanted = {(f"0/{prompt}-", sample) for prompt in range(30) for sample in range(4)}
    assert {(re.match(r"0/\d+-", t.group_id)[0], t.sample_index) for t in found} == wanted  # type: ignore[index]
    for trajectory in found:
        trajectory.segments[0].check()
        assert len(trajectory.turns) >= 1, trajectory
    assert main([*SMOKE, f"resume={run_dir}"]) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"rollout: error: [^\n]* that run has finished[^\n]*\n", line)


def test_a_resumed_job_goes_on_from_its_checkpoint(tiny_model_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = run(f"model.path={tiny_model_dir}", f"run_dir={run_dir}", "trainer.save_every_steps=1")
    assert first.returncode == 0, first.stderr
    again = run(f"model.path={tiny_model_dir}", f"resume={run_dir}", "trainer.steps=2")
    assert again.returncode == 0, again.stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    assert [(step["step"], step["weights_version"]) for step in summary["steps"]] == [(1, 1), (2, 2)]
    steps = {step for step in (0, 1, 2) if read_trajectories(run_dir / "trajectories.parquet", step)}
    assert steps == {0, 1, 2}
