"""Line budgets, in lines that hold code: no blanks, comments or docstrings."""

import ast
import sys
import tokenize
from pathlib import Path

FILE_SOFT, FILE_HARD, FUNCTION_HARD = 180, 300, 50
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def measure(path: Path) -> tuple[int, list[tuple[int, int, str]]]:
    """The file's code lines, and (code lines, line number, name) of each of its functions."""
    with tokenize.open(path) as file:
        spans = [(t.start[0], t.end[0] + 1) for t in tokenize.generate_tokens(file.readline) if t.type not in SILENT]
    code = {line for span in spans for line in range(*span)}
    nodes = list(ast.walk(ast.parse(path.read_bytes())))
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):  # a docstring
            code -= set(range(node.lineno, node.end_lineno + 1))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return len(code), [(len(code & set(range(n.lineno, n.end_lineno + 1))), n.lineno, n.name) for n in functions]


def main(folders: list[str]) -> int:
    """Print what is over a budget; 1 if a hard one is."""
    failed = False
    for path in sorted(p for folder in folders for p in Path(folder).rglob("*.py")):
        lines, functions = measure(path)
        long = [f for f in functions if f[0] > FUNCTION_HARD]
        failed |= lines > FILE_HARD or bool(long)
        if lines > FILE_SOFT:
            print(f"{path}: {lines} code lines ({'hard' if lines > FILE_HARD else 'soft'} limit)")
        for length, number, name in long:
            print(f"{path}:{number}: {name} has {length} code lines (hard limit)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["src", "tests", "benchmarks", "tools"]))
