"""What is installed is what the repository holds, and the installed command starts without `site`."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import osmoda.host

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLED = Path(osmoda.host.__file__).parents[1]
SCRIPT = REPOSITORY / "packaging" / "osmoda-sandbox"
ROOMS = ["host", "ledger", "egress", "sandbox", "supervisor", "mesh", "mcpd", "profiles"]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())

# Distributions that are not called as the package that they hold.
PACKAGES = {"OpenSSL": "pyopenssl", "dns": "dnspython", "nftables": "pip-nftables"}

# Says which interpreter options and path the script came with, in place of the real command.
STAND_IN = """
import sys
def main():
    site = "site" in sys.modules
    print(sys.flags.isolated, sys.flags.no_site, site, sys.path[-1], *sys.argv[1:], sep="|")
    return 7
"""


def contents(top: Path) -> set[str]:
    """The files of the rooms below `top` that belong in a distribution."""
    found = set()
    for room in ROOMS:
        for folder, _, names in os.walk(top / room, followlinks=True):
            if "__pycache__" not in folder:
                found |= {str(Path(folder, name).relative_to(top)) for name in names}
    return {name for name in found if name.endswith((".py", ".toml", ".json", "py.typed"))}


def test_every_file_of_the_rooms_is_installed_and_no_other():
    assert contents(INSTALLED) == contents(REPOSITORY)


def test_every_folder_with_modules_is_declared_as_a_package():
    folders = {str(Path(name).parent).replace("/", ".") for name in contents(REPOSITORY)}
    assert {f"osmoda.{folder}" for folder in folders} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_commands_are_the_same_script_which_its_name_tells_apart():
    scripts = [REPOSITORY / name for name in PROJECT["tool"]["setuptools"]["script-files"]]
    for script in scripts:
        assert not script.is_symlink()
        assert script.stat().st_mode & 0o111 == 0o111
        assert script.read_bytes() == SCRIPT.read_bytes(), f"{script.name} differs from {SCRIPT.name}"


def test_the_lock_holds_every_declared_dependency():
    lock = (REPOSITORY / "requirements-ci.txt").read_text()
    locked = {canonical(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    groups = [line for group in PROJECT["dependency-groups"].values() for line in group if isinstance(line, str)]
    wanted = {canonical(re.match(r"[\w.-]+", line)[0]) for line in [*PROJECT["project"]["dependencies"], *groups]}
    assert wanted <= locked
    assert "://" not in lock, "an address of a package index does not belong in the lock"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The layout of an environment in which the command is installed, with a stand-in for what it calls."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    (tmp_path / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix, 'bin')}\n")
    script = tmp_path / "bin" / "osmoda-sandbox"
    script.write_bytes(SCRIPT.read_bytes())
    script.chmod(0o755)
    package = tmp_path / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "osmoda" / "sandbox"
    package.mkdir(parents=True)
    (package / "entry.py").write_text(STAND_IN)
    return tmp_path


def expected(environment: Path, *arguments: str) -> str:
    path = environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    return "|".join(["1", "1", "False", str(path), *arguments]) + "\n"


def run(argv: list[str | Path], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **options)


def test_the_command_by_its_path(environment):
    result = run([environment / "bin" / "osmoda-sandbox", "run", "--", "a b", "'", "$HOME", ""])
    assert (result.stdout, result.stderr) == (expected(environment, "run", "--", "a b", "'", "$HOME", ""), "")
    assert result.returncode == 7


@pytest.mark.parametrize("entry", ["{}", ""], ids=["a directory", "the working directory"])
def test_the_command_by_path_search(environment, entry):
    path = os.pathsep.join([entry.format(environment / "bin"), "/usr/bin", "/bin"])
    argv = ["sh", "-c", "osmoda-sandbox x"]
    result = run(argv, cwd=environment / "bin", env={**os.environ, "PATH": path})
    assert result.stdout.endswith("|x\n"), result.stderr
    assert result.returncode == 7


def test_the_command_through_links(environment, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "first").symlink_to(environment / "bin" / "osmoda-sandbox")
    (elsewhere / "second").symlink_to("first")
    # Another python3 beside the link is not the one that the command was installed for.
    (elsewhere / "python3").symlink_to("/bin/false")
    assert run([elsewhere / "second", "x"]).stdout == expected(environment, "x")


def test_the_caller_s_environment_does_not_decide_what_code_runs(environment, tmp_path_factory):
    planted = tmp_path_factory.mktemp("planted")
    for name in ("sitecustomize", "osmoda", "posix", "io"):
        (planted / f"{name}.py").write_text("print('PLANTED')\nraise SystemExit(99)\n")
    environment_variables = {**os.environ, "PYTHONPATH": str(planted), "PYTHONSTARTUP": str(planted / "io.py")}
    control = run([sys.executable, "-c", "import osmoda"], env=environment_variables)
    assert "PLANTED" in control.stdout, "the attack does not work without the script, so it would prove nothing"
    result = run([environment / "bin" / "osmoda-sandbox"], cwd=planted, env=environment_variables)
    assert result.stdout == expected(environment)


def test_without_an_interpreter_beside_it_the_command_says_so(tmp_path):
    script = tmp_path / "osmoda-sandbox"
    script.write_bytes(SCRIPT.read_bytes())
    script.chmod(0o755)
    result = run([script])
    assert result.returncode == 125
    assert result.stderr == (
        f"osmoda-sandbox: there is no python3 beside {script}; install osmoda into a virtual environment\n"
    )


def test_an_error_within_the_package_is_not_taken_for_a_missing_package(environment):
    entry = next(environment.rglob("entry.py"))
    entry.write_text("import no_such_module\n")
    result = run([environment / "bin" / "osmoda-sandbox"])
    assert "No module named 'no_such_module'" in result.stderr
    assert "During handling" not in result.stderr


def test_what_the_rooms_import_is_declared_and_what_is_declared_is_imported():
    imported = set()
    for name in contents(REPOSITORY):
        if name.endswith(".py"):
            for node in ast.walk(ast.parse((REPOSITORY / name).read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    foreign = {PACKAGES.get(name, canonical(name)) for name in imported - set(sys.stdlib_module_names) - {"osmoda"}}
    declared = {canonical(re.match(r"[\w.-]+", line)[0]) for line in PROJECT["project"]["dependencies"]}
    assert foreign == declared
