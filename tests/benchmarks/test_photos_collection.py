"""The collection of photographs."""

import hashlib
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from benchmarks.photos.collection import (
    MANIFEST,
    OTHER,
    ManifestError,
    PackageError,
    Photo,
    collect,
    read_manifest,
)
from model.training.data import CIFAR10_LABELS

HEADER = "package,path,sha256,label,kind"
CAT, TOOL = b"content of cat", b"content of hammer"
OTHER_KINDS = {
    "animal",
    "building",
    "document",
    "drawing",
    "food",
    "landscape",
    "object",
    "person",
    "plant",
    "screenshot",
    "texture",
}

Build = Callable[[Path], None]
"""Writes the archive of a package into a folder."""


def sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def manifest(folder: Path, *rows: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join([HEADER, *rows, ""]))
    return path


def wheel(files: Mapping[str, bytes]) -> Build:
    def build(folder: Path) -> None:
        with zipfile.ZipFile(folder / "zoo-1.0-py3-none-any.whl", "w") as archive:
            for name, blob in files.items():
                archive.writestr(name, blob)

    return build


def deb(files: Mapping[str, bytes]) -> Build:
    def build(folder: Path) -> None:
        root = folder / "root"
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN/control").write_text(
            "Package: zoo\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody\nDescription: test\n"
        )
        for name, blob in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(blob)
        subprocess.run(["dpkg-deb", "--build", root, folder / "zoo_1.0_all.deb"], check=True, capture_output=True)

    return build


def qt_resource_file(folder: str, name: str, blob: bytes) -> bytes:
    """A Qt resource file of version 1 with one folder that contains one file."""
    names = b"".join(struct.pack(">HI", len(text), 0) + text.encode("utf-16-be") for text in (folder, name))
    tree = struct.pack(">IHII", 0, 2, 1, 1)  # the root
    tree += struct.pack(">IHII", 0, 2, 1, 2)
    tree += struct.pack(">IHHHI", 6 + 2 * len(folder), 0, 0, 0, 0)
    data = struct.pack(">I", len(blob)) + blob
    header = struct.pack(">4s4I", b"qres", 1, 20, 20 + len(tree), 20 + len(tree) + len(data))
    return header + tree + data + names


class Registry(dict[str, Build]):
    """Packages by name, downloaded as by a registry's client."""

    def download(self, package: str, folder: Path) -> Path:
        if package not in self:
            raise PackageError("there is no such package")
        self[package](folder)
        return next(path for path in folder.iterdir() if path.is_file())


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_the_manifest_is_sorted_and_without_duplicates() -> None:
    entries = read_manifest()
    rows = MANIFEST.read_text(encoding="utf-8").splitlines()[1:]
    assert [(e.package, e.path) for e in entries] == sorted((e.package, e.path) for e in entries)
    assert len(entries) == len(rows)
    assert len({entry.sha256 for entry in entries}) == len(entries)


def test_labels_and_kinds_of_the_manifest() -> None:
    entries = read_manifest()
    assert {entry.label for entry in entries} == {*CIFAR10_LABELS, OTHER}
    assert {entry.kind for entry in entries if entry.label != OTHER} == {"photo", "cutout"}
    assert {entry.kind for entry in entries if entry.label == OTHER} == OTHER_KINDS


def test_no_package_dominates_the_other_images() -> None:
    packages = [entry.package for entry in read_manifest() if entry.label == OTHER]
    assert max(packages.count(package) for package in set(packages)) <= 60


def test_images_of_a_wheel_are_downloaded_once(tmp_path: Path, registry: Registry) -> None:
    registry["pypi:zoo==1.0"] = wheel({"zoo/cat.JPG": CAT, "zoo/hammer.png": TOOL, "zoo/__init__.py": b""})
    rows = manifest(
        tmp_path,
        f"pypi:zoo==1.0,zoo/cat.JPG,{sha256(CAT)},cat,photo",
        f"pypi:zoo==1.0,zoo/hammer.png,{sha256(TOOL)},other,object",
    )
    folder = tmp_path / "photos"
    first = collect(folder, rows, download=registry.download)
    photos, skipped = first
    assert photos == [
        Photo(folder / f"{sha256(CAT)}.jpg", "cat", "photo", "pypi:zoo==1.0"),
        Photo(folder / f"{sha256(TOOL)}.png", None, "object", "pypi:zoo==1.0"),
    ]
    assert skipped == []
    assert [photo.path.read_bytes() for photo in photos] == [CAT, TOOL]
    assert len(list(folder.iterdir())) == 2
    registry.clear()
    assert collect(folder, rows, download=registry.download) == first


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_images_of_a_deb_and_of_a_qt_resource_file_in_it(tmp_path: Path, registry: Registry) -> None:
    registry["deb:zoo=1.0"] = deb(
        {"usr/share/hammer.png": TOOL, "usr/share/zoo.rcc": qt_resource_file("cats", "cat.webp", CAT)}
    )
    rows = manifest(
        tmp_path,
        f"deb:zoo=1.0,usr/share/hammer.png,{sha256(TOOL)},other,object",
        f"deb:zoo=1.0,usr/share/zoo.rcc!cats/cat.webp,{sha256(CAT)},cat,photo",
    )
    photos, skipped = collect(tmp_path / "photos", rows, download=registry.download)
    assert [photo.path.read_bytes() for photo in photos] == [TOOL, CAT]
    assert skipped == []


def test_an_image_with_another_hash_is_skipped(tmp_path: Path, registry: Registry) -> None:
    registry["pypi:zoo==1.0"] = wheel({"zoo/cat.jpg": b"content of dog"})
    rows = manifest(
        tmp_path,
        f"pypi:zoo==1.0,zoo/cat.jpg,{sha256(CAT)},cat,photo",
        f"pypi:zoo==1.0,zoo/hammer.png,{sha256(TOOL)},other,object",
    )
    photos, skipped = collect(tmp_path / "photos", rows, download=registry.download)
    assert photos == []
    assert skipped == [
        "zoo/cat.jpg of pypi:zoo==1.0 is skipped: its hash differs from the manifest",
        "zoo/hammer.png of pypi:zoo==1.0 is skipped: it is not in the archive",
    ]
    assert not list((tmp_path / "photos").iterdir())


def test_a_damaged_image_is_downloaded_again(tmp_path: Path, registry: Registry) -> None:
    registry["pypi:zoo==1.0"] = wheel({"zoo/cat.jpg": CAT})
    rows = manifest(tmp_path, f"pypi:zoo==1.0,zoo/cat.jpg,{sha256(CAT)},cat,photo")
    (photo,), _ = collect(tmp_path, rows, download=registry.download)
    photo.path.write_bytes(b"half")
    assert collect(tmp_path, rows, download=registry.download) == ([photo], [])
    assert photo.path.read_bytes() == CAT


def test_a_missing_package_is_skipped(tmp_path: Path, registry: Registry) -> None:
    registry["pypi:zoo==1.0"] = wheel({"zoo/cat.jpg": CAT})
    rows = manifest(
        tmp_path,
        f"deb:none=1.0,usr/share/hammer.png,{sha256(TOOL)},other,object",
        f"pypi:zoo==1.0,zoo/cat.jpg,{sha256(CAT)},cat,photo",
    )
    photos, skipped = collect(tmp_path / "photos", rows, download=registry.download)
    assert [photo.label for photo in photos] == ["cat"]
    assert skipped == ["deb:none=1.0 is skipped with 1 of the images: there is no such package"]


@pytest.mark.parametrize("archive", [b"plain text", b""])
def test_an_archive_that_cannot_be_read_is_skipped(tmp_path: Path, registry: Registry, archive: bytes) -> None:
    def build(folder: Path) -> None:
        (folder / "zoo-1.0-py3-none-any.whl").write_bytes(archive)

    registry["pypi:zoo==1.0"] = build
    rows = manifest(tmp_path, f"pypi:zoo==1.0,zoo/cat.jpg,{sha256(CAT)},cat,photo")
    photos, skipped = collect(tmp_path / "photos", rows, download=registry.download)
    assert photos == []
    assert "its archive cannot be read" in skipped[0]


def test_without_apt_get_the_package_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = manifest(tmp_path, f"deb:zoo=1.0,usr/share/cat.jpg,{sha256(CAT)},cat,photo")
    _, skipped = collect(tmp_path / "photos", rows)
    assert skipped == ["deb:zoo=1.0 is skipped with 1 of the images: apt-get is not installed"]


@pytest.mark.parametrize(
    "row",
    [
        f"pypi:zoo==1.0,../cat.jpg,{sha256(CAT)},cat,photo",
        f"pypi:zoo==1.0,zoo/../../cat.jpg,{sha256(CAT)},cat,photo",
        f"pypi:zoo==1.0,/zoo/cat.jpg,{sha256(CAT)},cat,photo",
        f"pypi:zoo==1.0,zoo/cat.py,{sha256(CAT)},cat,photo",
        "pypi:zoo==1.0,zoo/cat.jpg,../../../cat,cat,photo",
        f"pypi:--index-url=x==1.0,zoo/cat.jpg,{sha256(CAT)},cat,photo",
        f"deb:-o=Debug=1,zoo/cat.jpg,{sha256(CAT)},cat,photo",
        f"pypi:zoo,zoo/cat.jpg,{sha256(CAT)},cat,photo",
        f"npm:zoo==1.0,zoo/cat.jpg,{sha256(CAT)},cat,photo",
        f"pypi:zoo==1.0,zoo/cat.jpg,{sha256(CAT)},cat",
    ],
)
def test_a_malicious_or_malformed_row_is_rejected(tmp_path: Path, row: str) -> None:
    with pytest.raises(ManifestError, match="row 2"):
        read_manifest(manifest(tmp_path, row))


def test_a_manifest_without_the_columns_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("package,path\n")
    with pytest.raises(ManifestError, match="columns"):
        read_manifest(tmp_path / "manifest.csv")
