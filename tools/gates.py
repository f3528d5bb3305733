"""The house rules that no other tool checks, each a number or a word. Run by ``make check`` and by tests/house.

    python tools/gates.py [ROOT]

Prints every breach as ``path:line: rule: text`` and exits 1 if there is any. A breach may be allowed for a time in
``tools/gates_allow.toml``, with a reason; that list may only shrink (see ``apply_allowances``).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FUNCTION_LINES = 60
FILE_LINES = 500
ATTRIBUTES = 15
METHODS = 20
GRAB_BAGS = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers", "v2"}
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "cloudpickle", "dill", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
ARCHITECTURES = re.compile(r"llama|qwen|gemma|mistral|mixtral|deepseek|falcon", re.IGNORECASE)
OTHER_PROGRAMS = re.compile(
    r"llama[._]cpp|llama-(server|bench|batched-bench|perplexity|cpp)|LLAMA_ARG_\w+", re.IGNORECASE
)
# Where a family may be named: its own file, the wiring, the catalogue, and the reader of tokenizers in
# GGUF files, whose kinds bear the names of the models that first used them.
ARCHITECTURE_ROOMS = (
    "src/kvern/models/",
    "src/kvern/assembly/",
    "src/kvern/weights/catalogue.py",
    "src/kvern/weights/tokenizer_gguf.py",
)
# Written in pieces so that this file does not break its own rule.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(" + "|".join(["work/", "tmp/m/", "tmp/venv", "root/", "home/[a-z]"]) + ")")
REGISTRY_HOSTS = re.compile(
    "|".join([r"pypi\.o" + "rg", r"pythonhosted\.o" + "rg", r"huggingface\.c" + "o", r"hf\.c" + r"o\b"])
)
# What the prefix hf: stands for, unless HF_ENDPOINT is set.
HUB = ("registry-host", "src/kvern/weights/hugging_face.py")
NATIVE_SUFFIXES = {".cpp", ".h", ".hpp", ".cc"}
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".sh",
    ".txt",
    ".cmake",
    ".json",
    ".cfg",
    "",
} | NATIVE_SUFFIXES


@dataclass(frozen=True)
class Breach:
    """``where`` names the thing without its line, so that an allowance survives edits; ``size`` is as measured."""

    rule: str
    path: str
    line: int
    where: str
    text: str
    size: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


def tree_files(root: Path) -> list[str]:
    """Files that git tracks or would track; without git, every file outside hidden and build folders."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, check=True, capture_output=True, text=True,
        )  # fmt: skip
        names = {name for name in listed.stdout.split("\0") if name}
    except (OSError, subprocess.CalledProcessError):
        names = {str(path.relative_to(root)) for path in root.rglob("*") if not _built(path.relative_to(root))}
    return sorted(name for name in names if (root / name).is_file())


def _built(path: Path) -> bool:
    return any(part.startswith(".") or part in {"build", "dist", "__pycache__"} for part in path.parts[:-1])


def qualified(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every function and class with its dotted name inside the file."""

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                yield name, child
                yield from visit(child, name + ".")
            else:
                yield from visit(child, prefix)

    yield from visit(tree, "")


def check_functions(path: str, tree: ast.AST) -> Iterator[Breach]:
    for name, node in qualified(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                text = f"{name} has {lines} lines, at most {FUNCTION_LINES}"
                yield Breach("function-lines", path, node.lineno, f"{path}::{name}", text, lines)


def check_classes(path: str, tree: ast.AST) -> Iterator[Breach]:
    for name, node in qualified(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        where = f"{path}::{name}"
        methods = {child.name for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)}
        stored = {
            inner.attr
            for inner in ast.walk(node)
            if isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "self"
        }
        if len(methods) > METHODS and not path.startswith("tests/"):
            text = f"{name} has {len(methods)} methods, at most {METHODS}"
            yield Breach("class-methods", path, node.lineno, where, text, len(methods))
        if len(stored) > ATTRIBUTES:
            text = f"{name} stores {len(stored)} attributes, at most {ATTRIBUTES}"
            yield Breach("class-attributes", path, node.lineno, where, text, len(stored))
        if name.endswith("Mixin"):
            yield Breach("mixin", path, node.lineno, where, f"{name}: compose instead of mixing in")


def check_unsafe(path: str, tree: ast.AST) -> Iterator[Breach]:
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        for module in modules:
            if module.split(".")[0] in UNSAFE_MODULES:
                yield Breach("unsafe-import", path, node.lineno, f"{path}::{module}", f"{module} runs what it reads")
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in UNSAFE_CALLS or name == "torch.load":
                yield Breach("unsafe-call", path, node.lineno, f"{path}::{name}", f"{name}() runs what it reads")


def check_state(path: str, tree: ast.AST) -> Iterator[Breach]:
    """No hidden module state and no dispatch on what an object happens to have."""
    if not path.startswith("src/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield Breach(
                "global", path, node.lineno, f"{path}::{','.join(node.names)}", "pass state, do not share it"
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            yield Breach(
                "hasattr", path, node.lineno, f"{path}::hasattr", "dispatch on a type or a field, not hasattr"
            )


def check_sleep(path: str, tree: ast.AST) -> Iterator[Breach]:
    """Tests wait for a condition, never for a while: a sleep must stand in a ``while`` loop that polls one.

    ``asyncio.sleep(0)`` only yields and is fine anywhere.
    """
    if not path.startswith("tests/"):
        return
    polls = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.While) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "asyncio.sleep", "sleep"}:
            yields = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if not yields and id(node) not in polls:
                yield Breach("sleep", path, node.lineno, f"{path}::sleep", "wait for a condition, not for a while")


def _docstrings(tree: ast.AST) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.add(id(node.value))
    return found


def check_architectures(path: str, tree: ast.AST) -> Iterator[Breach]:
    """A model family is named in its own file and in the catalogue; elsewhere code asks the spec."""
    if not path.startswith("src/") or path.startswith(ARCHITECTURE_ROOMS):
        return
    documentation = _docstrings(tree)
    for node in ast.walk(tree):
        word = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            word = node.value
        elif isinstance(node, ast.Name):
            word = node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.alias):
            word = node.name
        match = ARCHITECTURES.search(OTHER_PROGRAMS.sub("", word))
        if match:
            where = f"{path}::{match.group().lower()}"
            yield Breach("architecture-name", path, node.lineno, where, f"{match.group()!r} outside models/")


PYTHON_CHECKS: tuple[Callable[[str, ast.AST], Iterator[Breach]], ...] = (
    check_functions,
    check_classes,
    check_unsafe,
    check_state,
    check_sleep,
    check_architectures,
)


def check_text(path: str, text: str) -> Iterator[Breach]:
    """Rules about any text file: its length if it is code, and nothing of the machine it was written on."""
    lines = text.splitlines()
    suffix = Path(path).suffix
    if suffix in NATIVE_SUFFIXES | {".py", ".sh"} and len(lines) > FILE_LINES:
        yield Breach("file-lines", path, 1, path, f"{len(lines)} lines, at most {FILE_LINES}", len(lines))
    for number, line in enumerate(lines, 1):
        for rule, pattern in (("machine-path", MACHINE_PATHS), ("registry-host", REGISTRY_HOSTS)):
            match = None if (rule, path) == HUB else pattern.search(line)
            if match:
                yield Breach(
                    rule, path, number, f"{path}::{match.group()}", f"{match.group()!r} ties the tree to a place"
                )
    if suffix in NATIVE_SUFFIXES:
        for number, line in enumerate(lines, 1):
            match = ARCHITECTURES.search(OTHER_PROGRAMS.sub("", line.split("//")[0]))
            if match:
                text_ = f"{match.group()!r} outside models/"
                yield Breach("architecture-name", path, number, f"{path}::{match.group().lower()}", text_)


def check_name(path: str) -> Iterator[Breach]:
    if path.startswith(("src/", "tests/", "native/", "benchmarks/", "tools/")):
        for part in Path(path).with_suffix("").parts:
            if set(re.split(r"[_\-.]", part.lower())) & GRAB_BAGS:
                yield Breach("grab-bag", path, 1, path, f"{part!r}: name a file after the one thing in it")


def breaches(root: Path, files: Iterable[str] | None = None) -> list[Breach]:
    """Every breach in the tree, allowances not yet applied."""
    found: list[Breach] = []
    for path in tree_files(root) if files is None else files:
        found.extend(check_name(path))
        if Path(path).suffix not in TEXT_SUFFIXES:
            continue
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found.extend(check_text(path, text))
        if path.endswith(".py"):
            tree = ast.parse(text, path)
            for check in PYTHON_CHECKS:
                found.extend(check(path, tree))
    return found


def apply_allowances(found: list[Breach], allowed: dict[str, object]) -> list[str]:
    """Complaints that remain. ``allowed`` is the parsed allowlist: ``most`` and a list ``allow`` of
    ``{rule, where, size, reason}``. An entry without use, too generous, or without reason is itself a complaint,
    and so is a list longer than ``most``: the list may only shrink."""
    raw = allowed.get("allow", [])
    entries = [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []
    complaints: list[str] = []
    if len(entries) != allowed.get("most", 0):
        complaints.append(f"gates_allow.toml: {len(entries)} entries, but most = {allowed.get('most', 0)}")
    worst: dict[tuple[str, str], int] = {}
    for breach in found:
        key = (breach.rule, breach.where)
        worst[key] = max(worst.get(key, 0), breach.size)
    limits: dict[tuple[str, str], int] = {}
    for entry in entries:
        key = (str(entry.get("rule")), str(entry.get("where")))
        limits[key] = int(entry.get("size", 1))
        if len(str(entry.get("reason", ""))) < 10:
            complaints.append(f"gates_allow.toml: {key} gives no reason")
        if worst.get(key, 0) < limits[key]:
            complaints.append(
                f"gates_allow.toml: {key} allows {limits[key]}, the tree needs {worst.get(key, 0)}: lower it"
            )
    complaints.extend(str(breach) for breach in found if breach.size > limits.get((breach.rule, breach.where), 0))
    return complaints


def committed_most(root: Path) -> int | None:
    """``most`` of the allowlist in the last commit; None when there is no such commit."""
    command = ["git", "show", "HEAD:tools/gates_allow.toml"]
    try:
        shown = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    value = tomllib.loads(shown.stdout).get("most")
    return value if isinstance(value, int) else None


def complaints(root: Path) -> list[str]:
    """All that is wrong with the tree at ``root``, as lines to print; empty when the gates are open."""
    path = root / "tools" / "gates_allow.toml"
    allowed = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = apply_allowances(breaches(root), allowed)
    before = committed_most(root)
    if before is not None and allowed.get("most", 0) > before:
        lines.append(f"gates_allow.toml: most rose from {before} to {allowed.get('most', 0)}; it may only shrink")
    return lines


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    lines = complaints(root)
    for line in lines:
        print(line)
    print(f"gates: {len(lines)} complaints" if lines else "gates: open")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
