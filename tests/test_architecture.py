"""The house rules that a machine can check: who imports whom, what the core stays away from, what is at the top."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpsnap

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mpsnap"

#: Rooms from the ground up. A module may import from its own room and from those below; rooms on one floor never meet.
FLOORS = {"core": 0, "store": 1, "simulator": 2, "runtime": 2, "views": 3, "server": 4, "cli": 5}
#: What gives a module a clock, randomness, I/O, threads, processes or a log.
IMPURE = {
    *("time", "random", "os", "io", "logging", "threading", "queue", "multiprocessing", "pathlib", "socket"),
    *("subprocess", "asyncio", "select", "selectors", "signal", "tempfile", "shutil", "secrets"),
}
#: Impure modules that the core may import all the same, with the reason.
PURE_USES = {
    ("mpsnap.core.kinds", "pathlib"): "paths are plain data, nothing touches the disk",
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Yield every module that `module` imports, also inside functions, with the line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module, node.lineno


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "top"


EVERY_IMPORT = [(module, path, name, line) for module, path in modules() for name, line in imports(module, path)]


#: What reads the clock on the wall.
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def test_the_walk_sees_the_package() -> None:
    assert {"mpsnap.core.protocol", "mpsnap.runtime.process", "mpsnap.cli.run"} <= {module for module, _ in modules()}
    assert len(EVERY_IMPORT) > 100


def test_nothing_imports_upward_and_rooms_of_one_floor_never_meet() -> None:
    wrong = []
    for module, path, name, line in EVERY_IMPORT:
        here, there = room(module), room(name)
        if not name.startswith("mpsnap.") or here not in FLOORS or there not in FLOORS:
            continue
        if here != there and FLOORS[there] >= FLOORS[here]:
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_views_read_snapshots_and_never_a_driver() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for module, path, name, line in EVERY_IMPORT
        if room(module) == "views" and room(name) in ("runtime", "simulator") and name.startswith("mpsnap.")
    ]
    assert not wrong, "\n".join(wrong)


def test_apps_import_only_the_public_names() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for module, path, name, line in EVERY_IMPORT
        if room(module) == "apps" and name.startswith("mpsnap.")
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_imports_the_command_line_and_the_apps() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for module, path, name, line in EVERY_IMPORT
        if room(name) in ("cli", "apps") and name.startswith("mpsnap.") and room(module) not in ("cli", "__main__")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_is_pure() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: the pure core imports {name}"
        for module, path, name, line in EVERY_IMPORT
        if room(module) == "core" and name.split(".")[0] in IMPURE and (module, name) not in PURE_USES
    ]
    assert not wrong, "\n".join(wrong)


def test_queue_internals_are_touched_in_one_file() -> None:
    touching = {
        path.name
        for _, path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("_reader", "_writer")
    }
    assert touching == {"channel.py"}


@pytest.mark.parametrize("call", ["print"])
def test_only_the_command_line_prints(call: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for module, path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == call
        if room(module) != "cli"
    ]
    assert not wrong, "\n".join(wrong)


def test_the_clock_on_the_wall_is_read_for_labels_alone() -> None:
    """Somebody sets it back by a day: whatever is decided, ordered or measured goes by another one, or by numbers."""
    reading = {
        (str(path.relative_to(ROOT)), text)
        for _, path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.Attribute, ast.ImportFrom))
        # Whoever imports from that module may read it under another name.
        if (text := ast.unparse(node)) in WALL_CLOCKS or text.startswith("from time import")
    }
    assert reading == {
        ("mpsnap/runtime/commits.py", "time.time"),  # the manifest's `wall_time`
        ("mpsnap/server/control.py", "time.time"),  # when the run began, when a node died
        ("mpsnap/server/digests.py", "time.time"),  # when a snapshot began
    }


def test_public_names_are_exact_and_sorted() -> None:
    assert mpsnap.__all__ == sorted(mpsnap.__all__)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    assert {alias.name for node in found for alias in node.names} | {"__version__"} == set(mpsnap.__all__)
    assert set(mpsnap.__all__) <= set(dir(mpsnap))
    assert all(hasattr(mpsnap, name) for name in mpsnap.__all__)
    assert not hasattr(mpsnap, "Clustre")


@pytest.mark.parametrize(
    ("imports", "unwanted"),
    [
        ("mpsnap.runtime.process", ["logging", "concurrent.futures", "mpsnap.runtime.supervisor", "psutil"]),
        # As its main script may, if that starts the cluster.
        ("mpsnap.runtime.cluster", ["psutil"]),
        # A verb brings what it needs.
        ("mpsnap.cli", ["mpsnap.runtime.supervisor", "mpsnap.simulator", "tabulate"]),
    ],
)
def test_little_is_imported_that_only_others_need(imports: str, unwanted: list[str]) -> None:
    program = f"import sys, {imports}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(unwanted) & set(done.stdout.split())


def test_every_module_can_be_the_first_to_be_imported() -> None:
    """No import leads back to where it began: else who came second would find the first half made."""
    known = {module for module, _ in modules()}
    needs = {module: needed_first(module, path) & known for module, path in modules()}
    while free := {module for module, needed in needs.items() if not needed & needs.keys()}:
        needs = {module: needed for module, needed in needs.items() if module not in free}
    assert not needs, f"import one another: {sorted(needs)}"
    assert "mpsnap.cli.main" in needed_first("mpsnap.cli", PACKAGE / "cli" / "__init__.py")
    assert "tabulate" not in needed_first("mpsnap.views.tables", PACKAGE / "views" / "tables.py"), "it comes later"


def needed_first(module: str, path: Path) -> set[str]:
    """Return what is imported while a module is: of packages too, but for those it is in, which have begun before."""
    found: set[str] = set()
    todo: list[ast.AST] = [tree(path)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)
    return {each for name in found for each in with_packages(name) if each not in with_packages(module)}


def with_packages(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:k]) for k in range(1, len(parts) + 1)}


def test_the_top_level_holds_what_the_house_has_rooms_for() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    top = {name.split("/")[0] for name in files if name and not name.startswith(".")}
    assert top <= {
        *("mpsnap", "tests", "benchmarks", "setup.cfg", "pyproject.toml", "README.md"),
        *("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
    }
