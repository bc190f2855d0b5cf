import pytest

from benchmarks.networks import ENGINES, main, row
from model.nets.sizes import NetworkSize


def test_a_row_has_a_cell_for_each_column() -> None:
    size = NetworkSize(3_412_330, 186_000_000, (4, 4), "exact maps")
    assert row("timm:pvt_v2_b0", 128, size, [9.55, 60.4, 1234.5, 50.0]) == (
        "| `timm:pvt_v2_b0` | 128 x 128 | 3.4 M | 186 M | `zoo` | exact maps | 9.6 | 60 | 1,234 | 50 |"
    )


@pytest.mark.slow
def test_a_network_is_measured_with_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timm:mobilenetv3_small_050", "--size", "32", "--rounds", "1", "--threads", "1"]) == 0
    header, _, line = (
        [cell.strip() for cell in text.strip("|").split("|")] for text in capsys.readouterr().out.splitlines()
    )
    assert len(line) == len(header)
    assert all(float(cell.replace(",", "")) > 0 for cell in line[-len(ENGINES) :])


def test_an_unknown_network_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resnet17"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no network 'resnet17': did you mean ")
