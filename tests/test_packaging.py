"""The shape of the project: who may import whom, what is installed, and what must stay light."""

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

from scripts.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("analysis", "checkpoints", "figures", "landscape", "scripts")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# module prefix -> prefixes of this project that it may import, nearest rule first
STORED = ("analysis", "landscape", "checkpoints")
LADDER = {
    "landscape": ("landscape",),
    "checkpoints": ("checkpoints",),
    "analysis.pipeline": STORED,
    "analysis.chosen_directions": STORED,
    "analysis.stored": STORED,
    "analysis.stored_surface": STORED,
    "analysis.subject": STORED,
    "analysis.measures.case": STORED,
    "analysis.measures.catalogue": STORED,
    "analysis.findings": ("analysis.findings", "analysis.spectra.quadrature", "analysis.spectra.intervals",
                          "checkpoints", "landscape.errors"),
    "analysis.operators": ("analysis.operators", "landscape"),
    "analysis.spectra": ("analysis.spectra", "analysis.operators", "landscape", "checkpoints.records"),
    "analysis.surfaces": ("analysis.surfaces", "analysis.operators", "landscape", "checkpoints.records"),
    "analysis": ("analysis", "landscape", "checkpoints.records"),
    "figures": ("figures", "analysis.findings", "analysis.spectra.intervals", "analysis.spectra.quadrature", "checkpoints",
                "landscape.family"),
    "scripts": PACKAGES,
}
OPENING_RUNS = ("analysis.pipeline", "analysis.stored", "analysis.stored_surface", "analysis.subject", "analysis.measures.case",
                "analysis.measures.catalogue", "analysis.chosen_directions")
TORCH_FREE = ("checkpoints", "figures", "landscape.family", "analysis.findings", "analysis.spectra.intervals",
              "analysis.spectra.quadrature")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


LIGHT_SOURCES = [path for path in SOURCES if module_name(path).startswith(TORCH_FREE)]


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a source imports, at any depth; `from a import b` gives a.b."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_within(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def rule_for(name: str) -> tuple[str, ...]:
    return next(allowed for prefix, allowed in LADDER.items() if is_within(name, prefix))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down_the_ladder(path):
    ours = [name for name in imported(path) if name.partition(".")[0] in PACKAGES]
    wrong = [name for name in ours if not any(is_within(name, allowed) for allowed in rule_for(module_name(path)))]
    assert wrong == []


@pytest.mark.parametrize("module", OPENING_RUNS)
def test_nothing_but_scripts_imports_what_opens_a_run(module):
    users = [module_name(path) for path in SOURCES if any(is_within(name, module) for name in imported(path))]
    assert [name for name in users if not is_within(name, "scripts") and name not in OPENING_RUNS] == []


@pytest.mark.parametrize("path", LIGHT_SOURCES, ids=module_name)
def test_the_torch_free_half_imports_no_torch(path):
    assert [name for name in imported(path) if name.partition(".")[0] in ("torch", "torchvision")] == []


@pytest.mark.parametrize("modules", [
    ["landscape"], ["analysis"], ["scripts.cli"],
    [module_name(path) for path in SOURCES if module_name(path).partition(".")[0] in ("checkpoints", "figures")]],
    ids=["landscape", "analysis", "scripts.cli", "every module of checkpoints and figures"])
def test_importing_the_light_half_leaves_torch_unloaded(modules):
    code = (f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    assert parser.read(ROOT / "setup.cfg")
    return parser


def test_the_packages_installed_are_the_folders_that_hold_sources():
    listed = setup()["options"]["packages"].split()
    folders = {path.parent for path in SOURCES}
    assert sorted(listed) == sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_the_distribution_is_called_like_no_import_package():
    assert setup()["metadata"]["name"].replace("-", "_") not in PACKAGES


def test_pyproject_holds_the_build_system_alone():
    import tomllib
    assert list(tomllib.loads((ROOT / "pyproject.toml").read_text())) == ["build-system"]


def test_the_command_starts_where_setup_says():
    assert setup()["options.entry_points"]["console_scripts"].split() == ["landscape", "=", "scripts.cli:main"]


def test_every_command_of_the_table_is_a_file():
    assert [module for module in COMMANDS.values() if not (ROOT / f"{module.replace('.', '/')}.py").exists()] == []


def test_scripts_shadow_no_package_and_no_standard_module():
    """Run as a file, a script puts its folder first on the path, and its siblings hide everything of their names."""
    libraries = {"torch", "numpy", "scipy", "matplotlib", "seaborn", "h5py", "pandas", "sklearn", "pyhessian", "tqdm",
                 "filelock", "psutil", "tomli_w", "PIL", "pytest"}
    names = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"__init__"}
    assert names & (set(PACKAGES) | libraries | set(sys.stdlib_module_names)) == set()


def test_tests_are_flat_and_shadow_no_package():
    folder = ROOT / "tests"
    assert [path for path in folder.rglob("*.py") if path.parent != folder] == []
    assert not {path.stem for path in folder.glob("*.py")} & (set(PACKAGES) | {"__init__"})


def test_git_ignores_no_source():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git working copy")
    names = "\n".join(str(path.relative_to(ROOT)) for path in SOURCES)
    done = subprocess.run(["git", "check-ignore", "--no-index", "--stdin"], cwd=ROOT, input=names,
                          capture_output=True, text=True)
    assert done.stdout == ""


def test_the_documented_file_runs_as_a_script():
    done = subprocess.run([sys.executable, "scripts/train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--head_rho" in done.stdout, done.stderr
