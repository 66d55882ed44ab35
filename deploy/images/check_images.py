"""Check the images' definitions against each other, pyproject.toml and the lock: check_images.py. Says what is wrong, one line each."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
USER = "65532:65532"
REQUIREMENTS = ("operator", "gateway", "server", "trainer-cuda", "trainer-cpu")
# Beside what pyproject.toml lists: what opens an object store, whose versions the lock does not have.
MORE = frozenset({"s3fs"})


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, continued lines joined."""

    verb: str
    text: str


def instructions(dockerfile: str) -> list[Instruction]:
    """Return a Dockerfile's instructions."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        Instruction(verb.upper(), text.strip())
        for verb, _, text in (line.partition(" ") for line in joined.splitlines())
    ]


def wrong_in_dockerfile(dockerfile: str, *, python: str, torch: str, root: Path) -> Iterator[str]:
    """Give what is wrong with one Dockerfile. python: the version that requirements are pinned for."""
    found = instructions(dockerfile)
    arguments = dict(one.text.split("=", 1) for one in found if one.verb == "ARG" and "=" in one.text)
    stages: set[str] = set()
    user = ""
    for one in found:
        if one.verb == "FROM":
            image, _, stage = one.text.partition(" AS ")
            user = user if image in stages else ""
            if image not in stages:
                yield from _wrong_base(image, arguments, python)
            stages.add(stage)
        elif one.verb == "USER":
            user = one.text
        elif one.verb in ("COPY", "ADD"):
            yield from _wrong_copy(one, stages, root)
    if user != USER:
        yield f"the last stage runs as {user or 'root'}; it must be USER {USER}"
    if arguments.get("TORCH", torch) != torch:
        yield f"ARG TORCH is {arguments['TORCH']}; requirements/lock.txt has {torch}"


def _wrong_base(image: str, arguments: Mapping[str, str], python: str) -> Iterator[str]:
    for name, value in arguments.items():
        image = image.replace(f"${{{name}}}", value)
    repository, _, tag = image.rpartition(":")
    if not re.fullmatch(r"\d+\.\d+\.\d+(-[a-z-]+)?", tag):
        yield f"FROM {image}: name a full version, so that the same definition gives the same image"
    elif not tag.startswith(f"{python}."):
        yield f"FROM {image}: requirements are pinned for Python {python}"
    if not repository.startswith("docker.io/library/"):
        yield f"FROM {image}: write the registry (docker.io/library/…), buildah assumes none"


def _wrong_copy(one: Instruction, stages: set[str], root: Path) -> Iterator[str]:
    *words, _ = one.text.split()
    if words[0].startswith("--from="):
        stage = words[0].removeprefix("--from=")
        if stage not in stages:
            yield f"COPY {one.text}: there is no stage {stage} before it"
        return
    for source in words:
        if not (root / source).exists():
            yield f"COPY {one.text}: {source} does not exist"


def pins(requirements: str) -> dict[str, str]:
    """Return version by package of pinned requirements."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^ ;\\]+)", requirements, re.MULTILINE))


def wrong_pins(name: str, pinned: Mapping[str, str], lock: Mapping[str, str]) -> Iterator[str]:
    """Give the packages of an image that are not of the lock's version."""
    for package, version in pinned.items():
        if lock.get(package, version) != version:
            yield f"requirements/images/{name}.txt has {package} {version}, requirements/lock.txt {lock[package]}: run  make lock"


def wrong_names(source: str, asked: str, declared: frozenset[str]) -> Iterator[str]:
    """Give the packages that an image asks for and pyproject.toml does not."""
    for line in asked.splitlines():
        package = re.split(r"[\[=<>~! ]", line.strip())[0].lower()
        if package and not package.startswith(("#", "-r")) and package not in declared | MORE:
            yield f"deploy/images/{source} asks for {package}, which pyproject.toml does not"


def everything_wrong(root: Path = ROOT) -> Iterator[str]:
    """Give everything that is wrong."""
    lock = pins((root / "requirements" / "lock.txt").read_text())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = [one for name, extra in project["optional-dependencies"].items() if name != "dev" for one in extra]
    declared = frozenset(re.split(r"[\[=<>~! ]", one)[0].lower() for one in (*project["dependencies"], *extras))
    images = root / "deploy" / "images"
    given = re.search(r"--python-version (\S+)", (images / "lock.sh").read_text())
    assert given is not None
    for file in sorted(images.glob("*.Dockerfile")):
        for sentence in wrong_in_dockerfile(file.read_text(), python=given[1], torch=lock["torch"], root=root):
            yield f"{file.name}: {sentence}"
    for file in sorted(images.glob("*.in")):
        yield from wrong_names(file.name, file.read_text(), declared)
    for name in REQUIREMENTS:
        yield from wrong_pins(name, pins((root / "requirements" / "images" / f"{name}.txt").read_text()), lock)


def lint(root: Path = ROOT) -> int:
    """Let hadolint read the Dockerfiles, where it is installed. Return its exit code."""
    program = shutil.which("hadolint")
    if program is None:
        print("images: hadolint is not installed, only the agreement was checked", file=sys.stderr)
        return 0
    files = sorted(str(file) for file in (root / "deploy" / "images").glob("*.Dockerfile"))
    return subprocess.run([program, "--config", str(root / "deploy" / "images" / "hadolint.yaml"), *files]).returncode


def main() -> int:
    """Check, and say what is wrong."""
    wrong = list(everything_wrong())
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else lint()


if __name__ == "__main__":
    sys.exit(main())
