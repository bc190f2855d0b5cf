"""The CUDA benchmark."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.cuda import BATCHES, ENGINES, Result, Speed, main, table


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is available")
def test_a_missing_gpu_is_reported(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_bundle)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: no CUDA device was found: run this on a machine with an NVIDIA GPU\n"


def test_the_table_has_a_line_for_every_batch_size_and_one_for_the_engine() -> None:
    speeds = [Speed(batch=batch, images_per_second=1000 * batch, median_ms=1, p99_ms=1.25) for batch in (1, 8)]
    result = Result("CUDA graphs", "bfloat16", start_seconds=2, reserved_mib=90, difference=0.004, speeds=speeds)
    _, *rows, last = table([result]).splitlines()
    assert [row.split()[-4:] for row in rows] == [["1", "1,000", "1.000", "1.250"], ["8", "8,000", "1.000", "1.250"]]
    assert last == "CUDA graphs: bfloat16, ready in 2.0 s, 90 MiB of GPU memory, logits within 0.40% of float32's"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_engine_is_measured_at_every_batch_size(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_bundle), "--seconds", "0.05"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["device"] == torch.cuda.get_device_name()
    assert [engine["engine"] for engine in summary["engines"]] == list(ENGINES)
    for engine in summary["engines"]:
        assert [speed["batch"] for speed in engine["speeds"]] == list(BATCHES)
        assert all(speed["images_per_second"] > 0 for speed in engine["speeds"])
        assert engine["difference"] < 0.05
