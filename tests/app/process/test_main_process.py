"""`python -m app` and other servers as real processes with a real bundle."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from app.telemetry.metrics import SHARED_FOLDER
from model import MAX_VIEWS
from tests.app.fakes import image_file
from tests.app.running import ROOT, Process, Visitor, eventually, process

CLIENTS = 32


def environment(weights: Path, **more: str) -> dict[str, str]:
    return {
        "TENFOLD_PORT": "0",
        "TENFOLD_WEIGHTS": str(weights),
        "TENFOLD_DEVICE": "cpu",
        "TENFOLD_THREADS": "1",
        "TENFOLD_DRAIN_DELAY": "0",
        **more,
    }


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_a_process_becomes_ready_predicts_and_ends_with_0_on_ctrl_c(int8_bundle: Path, log: Path) -> None:
    with process(environment(int8_bundle, TENFOLD_DRAIN_DELAY="60"), log) as running:
        running.wait_ready()
        with running.client() as client:
            response = client.post("/predict", content=image_file(), headers={"X-Request-ID": "mine"})
            assert response.status_code == 200
            assert response.json()["model"]["name"] == "tiny"
            assert len(response.json()["results"][0]["top_k"]) == 5
            assert "Server" not in response.headers
        began = time.monotonic()
        running.popen.send_signal(signal.SIGINT)
        assert running.exit_code() == 0
        assert time.monotonic() - began < 30, "Ctrl-C does not wait for the drain delay"
        (line,) = [line for line in running.log.splitlines() if "mine" in line]
        entry = json.loads(line)
        assert entry["message"].startswith("POST /predict 200 ")
        assert set(entry["stages"]) == {"decode", "queue", "inference"}
        assert {"request_id": "mine", "path": "/predict", "status": 200, "level": "info"}.items() <= entry.items()
        assert "Traceback" not in running.log
        assert "Warning" not in running.log


def test_sigterm_under_load_loses_nothing(int8_bundle: Path, log: Path) -> None:
    with process(environment(int8_bundle, TENFOLD_DRAIN_DELAY="3", TENFOLD_TIMEOUT="60"), log) as running:
        running.wait_ready()
        visitors = [Visitor(running.port) for _ in range(CLIENTS)]
        eventually(lambda: all(len(visitor.responses) > 3 for visitor in visitors), "all are served", seconds=120)
        with running.client() as probe:
            running.popen.send_signal(signal.SIGTERM)
            eventually(lambda: probe.get("/readyz").status_code == 503, "load balancers send requests elsewhere")
            draining = time.monotonic()
        assert running.exit_code() == 0
        for visitor in visitors:
            visitor.join()

        for visitor in visitors:
            assert isinstance(visitor.ended, httpx.ConnectError), f"a request was lost: {visitor.ended!r}"
            assert {status for _, status, _ in visitor.responses} == {200}
        # When a response was received proves nothing: it may have been written much earlier.
        late = {connection for visitor in visitors for sent, _, connection in visitor.responses if sent > draining}
        assert late == {"close"}, "it answers during the delay, and closes connections"
        assert "Traceback" not in running.log


@pytest.mark.parametrize("fault", ["fails", "hangs"])
def test_an_engine_that_stops_working_ends_the_process_so_that_it_is_restarted(fault: str, log: Path) -> None:
    limits = {"TENFOLD_STALL_TIMEOUT": "0.3", "TENFOLD_TIMEOUT": "1.5", "TENFOLD_DRAIN_DELAY": "4"}
    arguments = ["-m", "tests.app.fake_service", fault]
    with process({"TENFOLD_PORT": "0", **limits}, log, arguments=arguments) as running:
        running.wait_ready()
        with running.client() as client:
            statuses = [client.post("/predict", content=image_file()).status_code for _ in range(3)]
            assert statuses == [500] * 3 if fault == "fails" else statuses[0] == 504
            assert client.get("/livez").status_code == 503
        assert running.exit_code() == 1
        assert "the engine of fake-net does not work any more" in running.log


def test_sigterm_while_a_metric_is_updated_ends_it_with_0(tmp_path: Path, log: Path) -> None:
    settings = {"TENFOLD_PORT": "0", "TENFOLD_DRAIN_DELAY": "0", SHARED_FOLDER: str(tmp_path)}
    with process(settings, log, arguments=["-m", "tests.app.fake_service", "interrupted"]) as running:
        assert running.port
        assert running.exit_code(30) == 0
        assert "Traceback" not in running.log


def test_ctrl_c_ends_it_although_its_parent_ignores_it(log: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'tests.app.fake_service', 'works'])"
    )
    with process({"TENFOLD_PORT": "0"}, log, arguments=["-c", program]) as running:
        running.wait_ready()
        running.popen.send_signal(signal.SIGINT)
        assert running.exit_code(30) == 0


def test_sigterm_while_the_model_loads_ends_it_with_0(int8_bundle: Path, log: Path) -> None:
    with process(environment(int8_bundle), log) as running:
        assert running.port
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0
        assert "Traceback" not in running.log


def test_an_invalid_setting_ends_it_with_one_sentence(log: Path) -> None:
    with process({"TENFOLD_VIEWS": "99"}, log) as running:
        assert running.exit_code() == 2
    assert running.log.startswith(f"error: TENFOLD_VIEWS: Input should be less than or equal to {MAX_VIEWS}")
    assert len(running.log.splitlines()) == 1


def load_error(running: Process) -> str:
    """The one line of the log that says why the model cannot be loaded."""
    (line,) = (line for line in running.log.splitlines() if "cannot be loaded" in line)
    assert "Traceback" not in running.log
    return line


def test_a_missing_weights_folder_ends_it_and_says_what_to_do(tmp_path: Path, log: Path) -> None:
    with process(environment(tmp_path / "none"), log) as running:
        assert running.exit_code() == 1
    assert "name a weights folder" in load_error(running)
    assert "GET /readyz 200" not in running.log


def test_two_bundles_of_the_same_name_end_it(int8_bundle: Path, tmp_path: Path, log: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(int8_bundle, copy)
    with process({"TENFOLD_PORT": "0", "TENFOLD_MODELS": f"{int8_bundle},{copy}"}, log) as running:
        assert running.exit_code() == 1
    assert f"{int8_bundle} and {copy} have the same name, tiny: change `name`" in load_error(running)


def test_several_bundles_are_served(int8_bundle: Path, tmp_path: Path, log: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(int8_bundle, copy)
    card = json.loads((copy / "card.json").read_text(encoding="utf-8"))
    (copy / "card.json").write_text(json.dumps({**card, "name": "other"}), encoding="utf-8")
    variables = environment(int8_bundle, TENFOLD_MODELS=f"{int8_bundle},{copy}")
    del variables["TENFOLD_WEIGHTS"]
    with process(variables, log) as running:
        running.wait_ready()
        with running.client() as client:
            for query, name in (("", "tiny"), ("?model=other", "other")):
                assert client.post(f"/predict{query}", content=image_file()).json()["model"]["name"] == name
        running.popen.send_signal(signal.SIGINT)
        assert running.exit_code() == 0
    assert [name for name in ("tiny", "other") if f"serving {name} on openvino" in running.log] == ["tiny", "other"]


def test_damaged_weights_end_it_and_say_what_to_do(int8_bundle: Path, tmp_path: Path, log: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(int8_bundle, damaged)
    weights = damaged / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with process(environment(damaged), log) as running:
        assert running.exit_code() == 1
    assert "fetch the bundle again" in load_error(running)


def test_a_missing_device_ends_it_and_says_what_to_do(int8_bundle: Path, log: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with process(environment(int8_bundle, TENFOLD_DEVICE="cuda"), log) as running:
        assert running.exit_code() == 1
    assert "no CUDA device" in load_error(running)


def test_an_engine_without_a_model_in_the_bundle_ends_it_and_says_so(tiny_bundle: Path, log: Path) -> None:
    with process(environment(tiny_bundle, TENFOLD_ENGINE="openvino"), log) as running:
        assert running.exit_code() == 1
    assert "holds no OpenVINO model" in load_error(running)


def test_a_port_that_is_taken_ends_it(int8_bundle: Path, log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with process(environment(int8_bundle, TENFOLD_PORT=port), log) as running:
            assert running.exit_code() != 0
    message = f"cannot listen on 127.0.0.1:{port} (Address already in use): choose another address with TENFOLD_HOST"
    assert message in running.log


@pytest.mark.parametrize(
    "arguments",
    [
        ["uvicorn", "app.main:app", "--port", "0"],
        ["uvicorn", "app.main:create_app", "--factory", "--port", "0", "--root-path", "/tenfold"],
        ["hypercorn", "app.main:app", "--bind", "127.0.0.1:0", "--workers", "0"],
    ],
    ids=" ".join,
)
def test_other_servers_can_serve_the_application_by_its_name(
    float16_bundle: Path, log: Path, arguments: list[str]
) -> None:
    with process(environment(float16_bundle), log, arguments=["-m", *arguments]) as running:
        running.wait_ready()
        with running.client() as client:
            assert client.post("/predict", content=image_file()).status_code == 200
            assert client.get("/models/").headers["Location"] == "../models"
            assert client.get("/openapi.json").json()["servers"][0]["url"] == "."
        running.popen.send_signal(signal.SIGINT)
        running.exit_code()
    assert "Traceback" not in running.log


@pytest.mark.parametrize("variable", ["TENFOLD_PORT", "TENFOLD_WEIGHTS"])
def test_another_server_says_why_the_application_cannot_start(log: Path, variable: str) -> None:
    arguments = ["-m", "uvicorn", "app.main:app", "--port", "0"]
    with process({variable: "nothing"}, log, arguments=arguments) as running:
        assert running.exit_code() != 0
    assert "TENFOLD_PORT: " in running.log or "nothing/card.json cannot be read" in running.log
    assert "Traceback" not in running.log


def test_a_variable_that_is_no_setting_is_logged(log: Path) -> None:
    with process({"TENFOLD_PORT": "0", "TENFOLD_WORKER": "2", "TENFOLD_WEIGHTS": "nothing"}, log) as running:
        running.exit_code()
    assert (
        "TENFOLD_WORKER is not a setting of the service and has no effect: did you mean TENFOLD_WORKERS?" in running.log
    )


@pytest.mark.parametrize(
    ("argument", "code", "says"), [("--help", 0, "usage: python -m app"), ("--port", 2, "unknown argument --port")]
)
def test_arguments_get_the_usage(argument: str, code: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", argument, "8110"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert "TENFOLD_PORT" in done.stdout + done.stderr


def test_the_service_never_imports_torch_itself() -> None:
    program = (
        "import app.__main__, app.main, sys\n"
        "app.main.create_app()\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
