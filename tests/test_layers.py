"""The layers point one way, imports are light, and importing does nothing."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mimic_engine"

# The folders and modules that may import torch, Triton and the like; all else is the runtime.
TRAINING = ("mimic_engine.model", "mimic_engine.train", "mimic_engine.export")
TORCH = (*TRAINING, "mimic_engine.gpu", "mimic_engine.encoding.torch", "mimic_engine.scan.torch")
HEAVY = (
    *("torch", "transformers", "onnx", "onnxscript", "tensorboard", "matplotlib"),
    *("triton", "tensorrt", "tensorrt_rtx", "pycuda", "cuda"),
)
# Commands that train or evaluate: they import the training layer, and it alone, when they are imported.
COMMANDS = ("mimic_engine.evaluate.checkpoint",)
OPTIONAL = {  # by extra; in functions
    "simplejpeg": "jpeg",
    "httpx2": "client",
    "opentelemetry": "otel",
    "rdflib": "nif",
    "sentencex": "nif",
    "efficientnet_lite_pytorch": "demo",
    "resvg_py": "demo",
}
KERNELS = ("mimic_engine.kernels",)
ON_GPU = ("mimic_engine.engine.gpu_linker",)  # imported where it is chosen, over gpu/

# A layer and what it may not import, not even inside a function: the layers point one way.
ABOVE_ENGINE = ("mimic_engine.serve", "mimic_engine.server", "mimic_engine.cli", "mimic_engine.demo")
ABOVE_SCAN = (*ABOVE_ENGINE, "mimic_engine.engine", "mimic_engine.batching", "mimic_engine.calibration")
FORBIDDEN = {
    "mimic_engine.kernels": (
        *ABOVE_SCAN,
        *("mimic_engine.encoding", "mimic_engine.index", "mimic_engine.scan", "mimic_engine.gpu"),
    ),
    "mimic_engine.scan": (*ABOVE_SCAN, "mimic_engine.index", "mimic_engine.data"),
    "mimic_engine.index": (*ABOVE_SCAN, "mimic_engine.scan", "mimic_engine.data"),
    "mimic_engine.encoding": (*ABOVE_SCAN, "mimic_engine.index", "mimic_engine.scan"),
    "mimic_engine.data": ABOVE_SCAN,
    "mimic_engine.names": (*ABOVE_SCAN, "mimic_engine.index", "mimic_engine.scan", "mimic_engine.encoding"),
    "mimic_engine.gpu": (*ABOVE_SCAN, *TRAINING),
    "mimic_engine.backends": ABOVE_SCAN,
    "mimic_engine.base": (*ABOVE_ENGINE, "mimic_engine.engine", "mimic_engine.index", "mimic_engine.scan"),
    "mimic_engine.model": (*ABOVE_SCAN, "mimic_engine.index", "mimic_engine.train", "mimic_engine.export"),
    "mimic_engine.calibration": (*ABOVE_ENGINE, "mimic_engine.engine", "mimic_engine.batching"),
    "mimic_engine.engine": (*ABOVE_ENGINE, "mimic_engine.batching"),
    "mimic_engine.batching": (*ABOVE_ENGINE, "mimic_engine.engine"),
    "mimic_engine.server": ("mimic_engine.serve", "mimic_engine.encoding", "mimic_engine.scan"),
    "mimic_engine.client": (*ABOVE_SCAN, "mimic_engine.encoding", "mimic_engine.index", "mimic_engine.scan"),
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@functools.cache
def sources() -> dict[str, Path]:
    """Every module of the package by its import name, the files of ``kernels/`` and ``export/`` included."""
    found = {}
    for folder, prefix in (
        (PACKAGE, "mimic_engine"),
        *((ROOT / n, f"mimic_engine.{n}") for n in ("kernels", "export")),
    ):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((prefix, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in packages)


def imports(path: Path, *, lazy: bool) -> set[str]:
    """Modules that a file imports when it is imported; with ``lazy`` those inside functions too.

    What stands under ``if TYPE_CHECKING`` is never imported and left out.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute here"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif _only_for_types(node) or (isinstance(node, FUNCTIONS) and not lazy):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def runtime_modules() -> list[str]:
    return [
        name
        for name in sorted(sources())
        if not inside(name, (*TORCH, *COMMANDS, *KERNELS, *ON_GPU)) and not name.endswith("__main__")
    ]


MAY_IMPORT_TORCH = [name for name in sources() if inside(name, (*TORCH, *KERNELS))]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_package_is_seen_whole():
    names = set(sources())
    assert {
        "mimic_engine.engine.linker",
        "mimic_engine.kernels.reference",
        "mimic_engine.export.to_onnx",
    } <= names
    assert "mimic_engine.index.store" in runtime_modules()


def test_importing_the_package_pulls_in_at_most_numpy():
    code = "import sys; before = set(sys.modules); import mimic_engine; print(*set(sys.modules) - before)"
    done = run(code)
    assert done.returncode == 0, done.stderr
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    tops = {t for t in tops if t not in sys.stdlib_module_names and not t.startswith("_")}
    assert tops <= {"mimic_engine", "numpy"}


def test_every_runtime_module_is_imported_without_the_training_packages():
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        f"for name in {runtime_modules()!r}: import_module(name)\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(set(sources()) - set(MAY_IMPORT_TORCH)))
def test_only_the_torch_folders_import_torch_and_its_kin(name):
    """Not even inside a function."""
    assert not {m for m in imports(sources()[name], lazy=True) if inside(m, HEAVY)}


def test_at_most_fifteen_modules_lie_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 15


def test_no_imports_go_in_a_circle():
    """Imports inside functions and for types alone counted."""
    edges = {name: owners(path) - {name} for name, path in sources().items()}
    assert not circles(edges), f"in a circle, or between two: {sorted(circles(edges))}"


def circles(edges: dict[str, set[str]]) -> set[str]:
    """What is left when nodes that lead nowhere, or where nothing leads, are taken away until there are none."""
    left = set(edges)
    while ends := {n for n in left if not edges[n] & left or not any(n in edges[m] for m in left)}:
        left -= ends
    return left


def owners(path: Path) -> set[str]:
    """Modules of the package that hold what a file imports anywhere."""
    dotted: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            dotted.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dotted.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {owner for name in dotted if (owner := _owner(name))}


def _owner(dotted: str) -> str | None:
    """The module that an imported name is or that holds it; of a name that a package passes on, its origin."""
    modules = sources()
    module, _, name = dotted.rpartition(".")
    if dotted in modules:
        return dotted
    if module not in modules:
        return None
    if modules[module].name == "__init__.py":
        for node in ast.walk(ast.parse(modules[module].read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and name in {a.asname or a.name for a in node.names}:
                return _owner(f"{node.module}.{name}")
    return module


def test_a_name_belongs_to_the_module_that_holds_it():
    assert _owner("mimic_engine.index.store") == _owner("mimic_engine.index.store.Index")
    assert _owner("mimic_engine.Index") == _owner("mimic_engine.index.store.Index")
    assert _owner("mimic_engine.demo.fetch_demo") == "mimic_engine.demo.fetch"
    assert _owner("mimic_engine.kernels.reference") == "mimic_engine.kernels.reference"
    assert _owner("numpy.ndarray") is None


def test_circles_are_found():
    line = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert not circles(line)
    assert circles({**line, "c": {"b"}}) == {"b", "c"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b", "e"}, "e": set()}) == {"b", "c", "d"}


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_none_above_it(layer):
    checked = 0
    for name, path in sources().items():
        if inside(name, (layer,)):
            wrong = {m for m in imports(path, lazy=True) if inside(m, FORBIDDEN[layer])}
            assert not wrong, f"{name} imports {sorted(wrong)}"
            checked += 1
    assert checked


@pytest.mark.parametrize("name", sorted(sources()))
def test_importing_a_module_reads_neither_arguments_nor_environment(name):
    path = sources()[name]
    tree = ast.parse(path.read_text("utf-8"))
    read = [found for node in tree.body for found in _reads(node)]
    assert not read, f"{path}: at import: {read}"


def _reads(node: ast.AST) -> list[str]:
    """``os.environ``, ``os.getenv``, ``sys.argv`` in what runs at import, so in no function body."""
    if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
        return []
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "sys.argv"):
        return [f"line {node.lineno}: {ast.unparse(node)}"]
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        children = [*node.decorator_list, *node.args.defaults, *[d for d in node.args.kw_defaults if d]]
    elif isinstance(node, ast.Lambda):
        children = []
    return [found for child in children for found in _reads(child)]


def test_what_the_runtime_imports_is_a_declared_dependency():
    """Or one of an extra, where it is only imported when it is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = _names(project["dependencies"])
    distributions = packages_distributions()
    for name in runtime_modules():
        for module in imports(sources()[name], lazy=True):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top == "mimic_engine":
                continue
            owners = {_normal(d) for d in distributions.get(top, [top])}
            if top in OPTIONAL:
                assert owners & _names(project["optional-dependencies"][OPTIONAL[top]])
                assert top not in {m.partition(".")[0] for m in imports(sources()[name], lazy=False)}
                continue
            assert owners & declared, f"{name} imports {top}: add one of {sorted(owners)} to the dependencies"


def _names(requirements: list[str]) -> set[str]:
    return {_normal(re.split(r"[\[<>=!~ ;]", r, maxsplit=1)[0]) for r in requirements}


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_the_import_paths_hold_no_top_level_package():
    """A regular package called ``kernels`` on the path would break transformers beside Hugging Face's own."""
    assert not [n for n in ("kernels", "export") if (ROOT / n / "__init__.py").exists()]
    modules = {n: sorted(p.stem for p in (PACKAGE / n).glob("*.py")) for n in ("kernels", "export")}
    assert modules == {"kernels": ["__init__"], "export": ["__init__"]}
