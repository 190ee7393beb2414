"""Which names of TensorRT our sources use, looked up in the bindings that are on the path; a program of its own.

python trt_names.py SOURCE...      prints a JSON object: version, checked, missing
"""

import ast
import json
import sys
from pathlib import Path

# Variables of our sources -> the class of what they hold.
HOLDS = {
    **{
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "runtime": "Runtime",
    },
    **{"parser": "OnnxParser", "profile": "IOptimizationProfile", "e": "ParserError", "refitter": "Refitter"},
    **{"engine": "ICudaEngine", "self._engine": "ICudaEngine", "context": "IExecutionContext"},
}
# In refit() of the session, ``parser`` is another one.
HOLDS_IN = {("refit", "parser"): "OnnxParserRefitter"}
MODULES = ("trt", "library.trt", "self._trt")


def chains(tree):
    """(function, dotted name) of every attribute that is read off a name."""
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                yield function.name, ast.unparse(node)


def wanted(tree):
    """Dotted names under the module that the source uses."""
    for function, name in chains(tree):
        owner, _, attribute = name.rpartition(".")
        for module in MODULES:
            if name.startswith(module + ".") and not attribute.startswith("__"):
                yield name[len(module) + 1 :]
        held = HOLDS_IN.get((function, owner)) or HOLDS.get(owner)
        if held is not None:
            yield f"{held}.{attribute}"


def there(module, name):
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def main():
    import tensorrt_bindings as trt

    names = set()
    for path in sys.argv[1:]:
        names |= set(wanted(ast.parse(Path(path).read_text("utf-8"))))
    sys.path.insert(0, ".")
    from mimic_engine.export.engines import FLAGS

    names |= {f"BuilderFlag.{flag}" for flag in FLAGS.values()}
    missing = sorted(name for name in names if not there(trt, name))
    print(json.dumps({"version": trt.__version__, "checked": sorted(names), "missing": missing}))


if __name__ == "__main__":
    main()
