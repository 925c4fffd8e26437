"""``make gpu-check`` on a CPU: that it runs, and that nothing makes it hang or lose what it has found."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import LAYOUTS, ROOT, TESTS, WHEELS, Check


@pytest.fixture
def check() -> Check:
    return Check(dict(os.environ))


def test_it_starts_without_any_package() -> None:
    tree = ast.parse(Path(gpu_check.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names


def test_what_travels_is_locked_and_exists() -> None:
    locked = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert set(WHEELS) <= set(locked)
    assert (ROOT / TESTS).exists()


def test_a_process_that_hangs_is_ended_and_what_it_found_is_kept(check: Check) -> None:
    began = time.monotonic()
    # Its child keeps the output open.
    check.collect("first", 0.25, "sh", "-c", """echo '{"one": 1}'; sleep 60; true""")
    assert time.monotonic() - began < 30
    assert check.result == {"one": 1}
    assert check.failed == ["first: ended after 0.2 s"]


def test_a_process_that_fails_does_not_end_the_others(check: Check) -> None:
    check.collect("first", 30, sys.executable, "-S", "-c", "print('{\"one\": 1}'); raise SystemExit(3)")
    check.collect("second", 30, sys.executable, "-S", "-c", "print('text'); print('{\"two\": 2}')")
    assert check.result == {"one": 1, "two": 2}
    assert check.failed == ["first: exit code 3"]


def test_nothing_starts_when_the_time_is_over(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "TOTAL_SECONDS", 0)
    check.collect("first", 30, "no such program")
    assert check.failed == ["first: no time was left"]


def test_a_folder_without_wheels_is_named(check: Check, tmp_path: Path) -> None:
    check.patience = 0
    gpu_check.install(check, tmp_path / "wheels", tmp_path / "site")
    assert any(str(tmp_path / "wheels") in failure for failure in check.failed)


@pytest.mark.matrix
def test_all_of_it_runs_on_a_cpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--seconds", "5"]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=590, check=False)
    result = json.loads(process.stdout.splitlines()[-1])
    assert (result["failed"], result["ok"], process.returncode) == ([], True, 0)
    assert result["device"]["type"] == "cpu"
    assert result["tests"]["tests"] == result["tests"]["skipped"] > 0
    for name in LAYOUTS:
        measured = result[name]
        for layers, cached in (("2", True), ("all", False)):
            training = measured[f"layers_{layers}_batch_8"]
            assert training["cached"] == cached
            for key in ("step_ms", "tokens_per_second", "share_of_peak", "gemm_share", "peak_memory_gib"):
                assert training[key] > 0
        # On a CPU the same sums are added up in the same order.
        assert measured["resumed"]["difference"]["resumed"] == {"loss": 0, "weights": 0}
        assert 0 < measured["resumed"]["stopped_after"] < measured["resumed"]["steps"]
    assert result["torchrun"]["processes"] == 1
