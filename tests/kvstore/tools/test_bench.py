"""The benchmark end to end at sizes that take seconds: what it measures, what it writes, what it leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from kvstore.__main__ import main
from kvstore.files import PosixFiles
from kvstore.tools.bench import sizes
from kvstore.tools.bench.figures import Figure, Findings
from kvstore.tools.bench.large_store import CONTEXT_BLOCKS, context_keys, write_large_store
from kvstore.tools.bench.raw_file import RawFile
from kvstore.tools.bench.sizes import KIB, MIB, layout_of
from kvstore.tools.stat import stat_store
from tests.kvstore.kv_blocks import LAYOUTS, random_block
from tests.kvstore.tools.small_store import complaint_of

DEADLINE_S = 120.0
TINY = replace(
    sizes.QUICK,
    rounds=1,
    bytes_per_round=4 * MIB,
    large_block_bytes=(MIB,),
    index_blocks=2 * CONTEXT_BLOCKS,
    lookups=20,
)
FIGURES = {
    "reads_1_to_4_mib_over_raw": 0.90,
    "reads_256_kib_over_raw": 0.80,
    "sequential_reads_over_raw": None,
    "writes_over_raw": 0.80,
    "writes_computing_checksums_over_raw": None,
    "memory_reads_over_mooncake": 1.0,
    "memory_writes_over_mooncake": 1.0,
    "ssd_reads_over_mooncake_offload": 1.0,
    "open_1m_blocks": 5.0,
    "open_1m_blocks_rss_growth": 300.0,
    "lookup_512_keys": 1.0,
    "hash_512_blocks": None,
}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(sizes, "QUICK", TINY)


@pytest.mark.slow
def test_a_quick_run_measures_every_figure_or_says_why_not(tiny, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["bench", str(tmp_path / "disk"), "--quick", "--json", str(out)]) == 0
    answer = json.loads(out.read_text())
    assert answer.keys() == {"figures", "conditions", "series"}
    figures = {figure["name"]: figure for figure in answer["figures"]}
    left_out = answer["conditions"]["left_out"]
    assert figures.keys() | left_out.keys() == FIGURES.keys()
    assert not figures.keys() & left_out.keys()
    for name, figure in figures.items():
        assert figure.keys() == {"name", "value", "unit", "target", "ok"}
        assert figure["value"] > 0, name
        assert (figure["target"], figure["ok"]) == (FIGURES[name], None), name
    assert answer["conditions"]["cores"] >= 1
    assert "caches the disk" in answer["conditions"]["cannot_show"]
    assert len(answer["series"]["block_io"]) == 4, "two block sizes, two numbers of layers"
    shown = capsys.readouterr().out
    assert [name for name in figures if name not in shown] == []
    assert not (tmp_path / "disk").exists(), "what it made is gone"


def test_too_little_space_is_refused_before_anything_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sizes, "QUICK", replace(TINY, bytes_per_round=1 << 60))
    complaint = complaint_of(capsys, "bench", tmp_path, "--quick")
    assert "free" in complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_removes_what_it_wrote(tmp_path, number):
    (tmp_path / "w0.mine.000001.kv").write_bytes(b"a file of somebody's")
    command = [sys.executable, "-m", "kvstore", "bench", str(tmp_path), "--quick"]
    bench = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + DEADLINE_S
    while not list(tmp_path.glob("bench-*/store/*.kv")):
        assert bench.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    bench.send_signal(number)
    _, err = bench.communicate(timeout=DEADLINE_S)
    assert bench.returncode == 130
    assert err.splitlines()[-1] == "kvstore: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["w0.mine.000001.kv"]


def test_a_full_run_judges_figures_in_their_direction():
    findings = Findings(
        [
            Figure("fast", 0.9, "ratio", 0.9),
            Figure("slow", 0.89, "ratio", 0.9),
            Figure("short", 4.0, "s", 5.0, "lower"),
            Figure("long", 6.0, "s", 5.0, "lower"),
            Figure("told", 1.0, "s"),
        ]
    )
    judged = {figure["name"]: figure["ok"] for figure in findings.answer({}, quick=False)["figures"]}
    assert judged == {"fast": True, "slow": False, "short": True, "long": False, "told": None}
    assert not any(figure["ok"] for figure in findings.answer({}, quick=True)["figures"])


def test_the_lowest_ratio_is_the_figure_and_all_are_kept():
    findings = Findings()
    findings.add_ratio("reads", 0.9, {"1 MiB": 1.2, "4 MiB": 0.8})
    assert findings.figures[0].value == 0.8
    assert findings.series["reads"] == {"1 MiB": 1.2, "4 MiB": 0.8}


def test_the_large_store_is_one_that_a_scan_finds_whole(tmp_path):
    num_blocks = 5 * CONTEXT_BLOCKS
    write_large_store(tmp_path, layout_of(MIB, 8), num_blocks)
    (version,) = stat_store(tmp_path, PosixFiles()).inventory.versions
    assert version.num_blocks == num_blocks
    assert version.num_unsealed == 4
    assert version.num_sealed > 0
    on_disk = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert on_disk < version.nbytes / 50, "its data are holes"


def test_contexts_are_chains_of_their_own():
    layout = LAYOUTS["whole pages"]
    first, second = context_keys(layout, 0), context_keys(layout, 1)
    assert len({*first, *second}) == 2 * CONTEXT_BLOCKS
    assert first == context_keys(layout, 0)


@pytest.mark.parametrize("preallocate", [False, True])
def test_the_raw_file_moves_the_bytes_it_is_given(tmp_path, preallocate):
    layout = LAYOUTS["whole pages"]
    slots = [random_block(layout, number) for number in range(9)]
    wanted = [slot.copy() for slot in slots]
    with RawFile(tmp_path / "raw", num_threads=3, direct=False) as raw:
        raw.write(slots, 2, preallocate=preallocate)
        for slot in slots:
            slot[:] = 0
        order = [3, 1, 8, 0, 2, 4, 7, 6, 5]
        raw.read([i * layout.slot_bytes for i in order], [slots[i] for i in order])
    assert all((slot == want).all() for slot, want in zip(slots, wanted, strict=True))
    assert not (tmp_path / "raw").exists()


def test_a_raw_file_that_ends_early_is_an_error(tmp_path):
    slot = random_block(LAYOUTS["whole pages"], 0)
    with (
        RawFile(tmp_path / "raw", num_threads=1, direct=False) as raw,
        pytest.raises(OSError, match="0 bytes"),
    ):
        raw.read([1 << 20], [slot])


@pytest.mark.parametrize("block_bytes", [256 * KIB, MIB, 2 * MIB, 4 * MIB])
@pytest.mark.parametrize("num_layers", [8, 61])
def test_a_slot_has_the_size_it_is_named_after(block_bytes, num_layers):
    assert abs(layout_of(block_bytes, num_layers).slot_bytes - block_bytes) <= block_bytes // 100
