"""The documents agree with the code."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client import Counter
from pydantic import SecretStr

import model
from app.cli.classify.command import main as classify
from app.cli.main import app as tenfold
from app.http.parameters import ExplainParams, PredictParams
from app.http.problems import TABLE
from app.http.schemas import ExplainedView, Explanation, ImageResult, Problem
from app.main import create_app
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model.card import read_card
from model.commands import calibrate, evaluate, export, networks, quantize, train, upgrade
from model.guard import MEMORY_PER_PIXEL
from model.nets.zoo import BUILDERS, TIMM_NETWORKS
from model.training.data import folder_of
from model.training.data.listing import list_images
from model.training.overrides import changed
from model.training.recipes import RECIPES, recipe_named
from tests.documents import ROOT, anchors, blocks, documents, inline_code, links, read, section, tables
from tests.hostile import corpus

README_LIMIT = 6_144
# Read by the tests and by commands, not by the service.
OTHER_VARIABLES = {"TENFOLD_DOCKER", "TENFOLD_API_KEY", "TENFOLD_ADMIN_KEY"}
# Files that a document describes for the reader to write.
EXAMPLES = {"digits.py", "model/nets/plaincnn.py"}
# Programs in .venv/bin that a document installs first: `make ray`, and OpenTelemetry.
INSTALLED_BY_DOCUMENTS = {"serve", "opentelemetry-instrument"}
WEIGHTS = ROOT / "weights" / "resnet18-cifar10"

every_document = pytest.mark.parametrize("path", documents(), ids=str)


def test_the_readme_is_short() -> None:
    assert len(read("README.md").encode()) <= README_LIMIT


@every_document
def test_links_resolve(path: Path) -> None:
    for target in links(read(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / path.parent / name).resolve() if name else ROOT / path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_document_is_linked_from_the_readme() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in links(read("README.md"))}
    missing = [path for path in documents() if path.parent == Path("docs") and ROOT / path not in linked]
    assert missing == []


@every_document
def test_paths_exist(path: Path) -> None:
    folders = {entry.name for entry in ROOT.iterdir() if entry.is_dir()} - {"data", "runs"}
    for code in inline_code(read(path)):
        name = code.partition("::")[0]
        if re.fullmatch(r"[\w.-]+\.(py|toml|yml)|Makefile|Dockerfile", name):
            assert (ROOT / name).is_file() or name in EXAMPLES, code
        elif re.fullmatch(r"[\w./-]+", name) and name.partition("/")[0] in folders and "/NAME" not in name:
            assert (ROOT / name).exists() or name in EXAMPLES, code


@every_document
def test_tests_exist(path: Path) -> None:
    for name, function in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read(path)):
        tree = ast.parse(read(name))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{name}::{function}"


def test_the_number_of_hostile_files_is_that_of_the_corpus() -> None:
    assert f"{len(list(corpus()))} hostile files" in read("docs/reliability.md")


def test_the_limits_on_memory_are_those_of_the_code() -> None:
    rows = {row[0].strip("`"): row[1:] for table in tables(read("docs/deployment.md")) for row in table}
    settings = Settings()
    assert rows["TENFOLD_MAX_HELD_BYTES"][0] == f"{settings.max_held_bytes / 1e6:g} MB"
    assert rows["TENFOLD_MAX_DECODE_BYTES"][0] == f"{settings.max_decode_bytes / 1e6:g} MB"
    pixels, bound = rows["TENFOLD_MAX_PIXELS"]
    assert pixels == f"{settings.max_pixels / 1e6:g} million"
    assert bound.endswith(
        f"{MEMORY_PER_PIXEL:g} bytes per pixel, so {settings.max_pixels * MEMORY_PER_PIXEL / 1e6:g} MB"
    )


def test_every_promise_has_a_test() -> None:
    (rows,) = tables(section(read("docs/reliability.md"), "Promises and their tests"))
    assert len(rows) > 10
    for promise, tests in rows:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", tests), promise


@every_document
def test_variables_are_settings(path: Path) -> None:
    known = {f"TENFOLD_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"TENFOLD_\w+", read(path))) <= known | OTHER_VARIABLES


def test_the_settings_are_listed_as_they_are() -> None:
    rows = re.findall(r"^\| `(TENFOLD_\w+)` \| `?(.*?)`? ?\| (.*?) \|$", read("docs/settings.md"), re.MULTILINE)
    code = [
        (f"TENFOLD_{name.upper()}", str("" if field.default in ((), None) else field.default), field.description)
        for name, field in Settings.model_fields.items()
    ]
    assert rows == code


def test_the_endpoints_are_listed() -> None:
    (rows, *_) = tables(read("docs/api.md"))
    listed = set(re.findall(r"`(DELETE|GET|POST) (/\S*)`", " ".join(row[0] for row in rows)))
    settings = Settings(admin_keys=(SecretStr("key"),), feedback=Path("feedback.sqlite"))
    paths = create_app(settings).openapi()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert listed == served | {("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")}


def test_the_errors_are_listed() -> None:
    rows = list(tables(section(read("docs/api.md"), "Errors")))[-1]
    assert [(slug.strip("`"), int(status)) for slug, status, _ in rows] == [
        (kind.slug, kind.status) for kind in TABLE.values()
    ]


def fields(heading: str, *, table: int) -> list[str]:
    """The names in the first column of a table of docs/api.md."""
    rows = list(tables(section(read("docs/api.md"), heading)))[table]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]


def test_the_parameters_are_listed() -> None:
    assert fields("POST /predict", table=0) == list(PredictParams.model_fields)
    assert sorted(fields("POST /explain", table=0)) == sorted(ExplainParams.model_fields)


def test_the_fields_of_responses_are_listed() -> None:
    assert fields("POST /predict", table=1) == list(ImageResult.model_fields)
    described = {*Explanation.model_fields, *ExplainedView.model_fields} - {"model"}
    assert set(fields("POST /explain", table=1)) == described
    assert fields("Errors", table=0) == list(Problem.model_fields)


def test_the_metrics_are_listed() -> None:
    (rows,) = tables(section(read("docs/deployment.md"), "Metrics"))
    listed = [(name.strip("`"), kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels, _ in rows]
    collectors = [
        collector
        for collector in Telemetry().registry._collector_to_names
        if getattr(collector, "_name", "").startswith("tenfold")
    ]
    code = [
        (
            collector._name + "_total" * isinstance(collector, Counter),  # type: ignore[attr-defined]
            collector._type,  # type: ignore[attr-defined]
            list(collector._labelnames),  # type: ignore[attr-defined]
        )
        for collector in collectors
    ]
    assert listed == code


def test_the_recipes_are_listed() -> None:
    rows = next(rows for rows in tables(section(read("docs/training.md"), "Training")) if rows)
    assert [name.strip("`") for name, _ in rows] == list(RECIPES)
    for name, summary in rows:
        recipe = RECIPES[name.strip("`")]
        assert f"{recipe.epochs} epochs" in summary, name


def test_the_networks_are_listed() -> None:
    rows = next(rows for rows in tables(read("docs/networks.md")) if rows)
    assert [row[0].strip("`") for row in rows] == [*BUILDERS, *TIMM_NETWORKS]


def test_the_error_in_the_example_of_the_command_line_is_true() -> None:
    spec = read_card(WEIGHTS / "card.json").input
    with pytest.raises(model.UnsupportedImage) as caught:
        model.preprocess(b"some notes", spec, max_pixels=10**6)
    assert read("docs/command-line.md").count(str(caught.value)) == 2


def command_of(function: Any) -> typer.core.TyperCommand:
    single = typer.Typer()
    single.command()(function)
    command = typer.main.get_command(single)
    assert isinstance(command, typer.core.TyperCommand)
    return command


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def test_options_of_the_command_line_exist() -> None:
    group = typer.main.get_command(tenfold)
    serve = group.commands["serve"]  # type: ignore[attr-defined]
    known = options_of(command_of(classify)) | options_of(serve)
    assert (
        set(re.findall(r"(?<![\w-])--?[a-z0][a-z-]*\b", " ".join(inline_code(read("docs/command-line.md"))))) - {"-m"}
        <= known
    )


MODULES = {
    "app": set[str](),
    "app.classify": options_of(command_of(classify)),
    "model.train": options_of(command_of(train.main)),
    "model.evaluate": options_of(command_of(evaluate.main)),
    "model.quantize": options_of(command_of(quantize.main)),
    "model.calibrate": options_of(command_of(calibrate.main)),
    "model.upgrade": options_of(command_of(upgrade.main)),
    # Without a module of their own.
    "model.export": options_of(command_of(export.main)),
    "model.networks": options_of(command_of(networks.main)),
}


def options_in_the_source(module: ModuleSpec) -> set[str]:
    """What looks like an option of argparse or Typer in a program or its package, which is not imported."""
    assert module.origin
    file = Path(module.origin)
    files = list(file.parent.glob("*.py")) if file.stem == "__init__" else [file]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    parameters = re.findall(r"^    (\w+): ", text, re.MULTILINE)
    return {*re.findall(r'"(--[\w-]+)"', text), *(f"--{name.replace('_', '-')}" for name in parameters)}


@every_document
def test_commands_exist(path: Path) -> None:
    text = read(path)
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    for line in lines + inline_code(text):
        for target in re.findall(r"\bmake ([a-z]+)", line):
            assert target in targets, line
        for name, arguments in re.findall(r"\bpython -m ([\w.]+)(.*)", line):
            if name in {"pytest", "venv", "pip"}:
                continue
            module = importlib.util.find_spec(name)
            assert module, line
            given = {word for word in shlex.split(arguments, comments=True) if word.startswith("--")}
            assert given <= (MODULES[name] if name in MODULES else options_in_the_source(module)), line


@every_document
def test_commands_of_the_program_exist(path: Path) -> None:
    commands = typer.main.get_command(tenfold).commands  # type: ignore[attr-defined]
    joined = [block.replace("\\\n", " ") for block in blocks(read(path), "sh")]
    for line in [line for block in joined for line in block.splitlines()] + inline_code(read(path)):
        for name, arguments in re.findall(r"(?<![\w./-])(?:\.venv/bin/)?tenfold ([a-z][a-z-]*)( .*)?$", line):
            assert name in commands, line
            given = {word for word in shlex.split(arguments, comments=True) if word.startswith("--")}
            own = options_of(commands[name])
            assert given <= (MODULES.get(f"model.{name}") or MODULES.get(f"app.{name}") or own), line


@every_document
def test_commands_are_found_without_an_activated_environment(path: Path) -> None:
    installed = {entry.name for entry in Path(sys.executable).parent.iterdir()} - {"pip", "uv"}
    for block in blocks(read(path), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"^\s*(\w+=\S*(\s+|$)|nice -n \d+ +)*", "", line)
            program = command.partition(" ")[0]
            assert program not in installed, line
            if program.startswith(".venv/bin/"):
                assert program.removeprefix(".venv/bin/") in installed | {"uv"} | INSTALLED_BY_DOCUMENTS, line
            elif "/" in program:
                assert (ROOT / program).exists(), line


@every_document
def test_files_in_uploads_exist(path: Path) -> None:
    for block in blocks(read(path), "sh"):
        for name in re.findall(r"(?:file=|--data-binary )@(\S+)", block):
            assert (ROOT / name).is_file(), name


def test_make_lists_its_targets() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make ([\w-]+) +\w", listed, re.MULTILINE)) == set(phony[0].split())


def test_the_folder_that_the_guide_writes_is_a_data_set(tmp_path: Path) -> None:
    (program,) = blocks(read("docs/your-own-images.md"), "python")
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, check=True)
    listing = list_images(tmp_path / "data" / "digits")
    assert listing.labels == tuple("0123456789")
    assert len(listing.files) == 1797


def test_the_recipe_of_the_guide_accepts_its_options() -> None:
    text = read("docs/your-own-images.md").replace("\\\n", " ")
    lines = [line for block in blocks(text, "sh") for line in block.splitlines() if "tenfold train" in line]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        recipe = changed(recipe_named(words[words.index("--recipe") + 1]), settings)
        assert recipe.needs_init
        assert "--init" in words
        assert folder_of(words[words.index("--data") + 1])


def test_the_example_of_the_readme_is_true() -> None:
    (block,) = blocks(read("README.md"), "json")
    assert block in read("docs/api.md")
    response = json.loads(block)
    card = read_card(WEIGHTS / "card.json")
    assert response["model"] == {"name": card.name, "version": card.version}
    (result,) = response["results"]
    assert list(result) == list(ImageResult.model_fields)
    (command,) = [line for block in blocks(read("README.md"), "sh") for line in block.splitlines() if "curl" in line]
    file = ROOT / re.findall(r"file=@(\S+)", command)[0]
    assert result["filename"] == file.name
    classifier = model.load(WEIGHTS, device="cpu")
    views = Settings.model_fields["views"].default
    image = model.preprocess(file.read_bytes(), card.input, max_pixels=10**6, views=views)
    (prediction,) = classifier.classify([image.pixels])
    assert (result["width"], result["height"]) == (image.width, image.height)
    assert result["views"] == prediction.views
    assert result["warnings"] == list(image.warnings)
    assert result["accepted"] == prediction.accepted()
    assert result["top_k"][0]["label"] == prediction.top_k(1)[0].label
    # Not to the last digit, because other CPUs compute with other instructions.
    assert result["in_distribution"] == pytest.approx(prediction.in_distribution, abs=0.05)
    for ranked in result["top_k"]:
        assert card.labels[ranked["index"]] == ranked["label"]
        assert ranked["probability"] == pytest.approx(float(prediction.probabilities[ranked["index"]]), abs=0.01)


def test_versions_in_examples_are_that_of_the_weights() -> None:
    version = read_card(WEIGHTS / "card.json").version
    for path in documents():
        assert set(re.findall(r'"version": "(\w+)"|resnet18-cifar10 ([0-9a-f]{12})\b', read(path))) <= {
            (version, ""),
            ("", version),
        }, path
    protocol = read("docs/open-inference-protocol.md")
    assert f'"model_version": "{int(version, 16)}"' in protocol
    assert f'int("{version}", 16)' in protocol


def test_the_figures_of_the_readme_are_those_of_the_card() -> None:
    card = read_card(WEIGHTS / "card.json")
    assert card.openvino is not None
    assert f"{card.metrics.top1:.1%} (float32), {card.openvino.top1:.1%} (int8)".replace("%", " %") in read("README.md")
    rows = [row for table in tables(read("docs/training.md")) for row in table]
    assert ["float32", f"{card.metrics.top1:.2%}".replace("%", " %")] in rows
    assert ["int8, which serves on a CPU", f"{card.openvino.top1:.2%}".replace("%", " %")] in rows
