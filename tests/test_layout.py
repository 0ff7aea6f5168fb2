"""The rules of the house, checked on the source: who imports whom, what every script must have."""

import ast
import graphlib
import io
import re
import sys
import tokenize
import tomllib
from pathlib import Path

from common import catalog

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = catalog.script_paths()
COMMON = sorted((ROOT / "common").rglob("*.py"))
SOURCES = [*SCRIPTS, *COMMON, *sorted((ROOT / "benchmarks").rglob("*.py"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Lines that are not blank, docstring included. A script that repeats the machinery is too long.
# Tabular scripts: dp_, mc_, td_ and bandit_ in the folder of the fundamentals.
MAX_LINES, MAX_LINES_TABULAR, MAX_LINES_LONG = 300, 200, 400
TABULAR = ("mdp_", "dp_", "mc_", "td_", "bandit_")
LONG = {"rainbow", "trpo", "acktr", "i2a"}  # six algorithms in one, or long mathematics
MAX_LINES_MAIN = 15


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_script = pytest.mark.parametrize("path", SCRIPTS, ids=name)
each_common = pytest.mark.parametrize("path", COMMON, ids=name)
each_source = pytest.mark.parametrize("path", SOURCES, ids=name)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(module: ast.Module) -> set[str]:
    """Everything imported, also within functions; `from a import b` gives "a" and "a.b"."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(module: ast.Module) -> set[str]:
    return {imported.partition(".")[0] for imported in imports(module)}


def dependencies(*extras: str) -> set[str]:
    """Import names of the packages that pyproject.toml asks for."""
    wanted = list(PROJECT["dependencies"])
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    names = {re.match(r"[\w-]+", text)[0].replace("-", "_") for text in wanted}
    return names | ({"sklearn"} if "scikit_learn" in names else set())


def functions(module: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}


def config_class(module: ast.Module) -> ast.ClassDef:
    [found] = [n for n in module.body if isinstance(n, ast.ClassDef) and n.name == "Config"]
    return found


def test_there_are_scripts_to_check():
    assert {"dp_value_iteration", "dqn", "ppo_clip"} <= {path.stem for path in SCRIPTS}
    assert len(COMMON) > 15


# --- Arrows run one way: script -> common -----------------------------------------------------


@each_script
def test_scripts_import_only_common_and_what_is_installed(path):
    allowed = sys.stdlib_module_names | dependencies("distributed") | {"common"}
    assert packages(tree(path)) <= allowed


@each_common
def test_common_imports_no_script_and_only_what_is_installed(path):
    allowed = sys.stdlib_module_names | dependencies() | {"common"}
    assert packages(tree(path)) <= allowed
    assert "torch" not in allowed


def modules_of_common():
    paths = {}
    for path in COMMON:
        dotted = name(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        paths[dotted] = path
    return paths


def test_only_scripts_with_distributions_wait_for_tensorflow_probability():
    """It takes a second to import."""
    modules, waiting = modules_of_common(), set()
    for script in SCRIPTS:
        seen, to_read = set(), [script]
        while to_read:
            found = imports(tree(to_read.pop())) - seen
            seen |= found
            to_read += [modules[used] for used in found if used in modules]
        if "tensorflow_probability" in seen:
            waiting.add(script.stem)
    value_based = "dqn double_dqn dueling_dqn prioritized_dqn drqn rainbow".split()
    assert not waiting & {*value_based, "ddpg", "td3", "sac"}
    assert {"reinforce", "a2c", "ppo_clip"} <= waiting


def test_common_modules_form_layers():
    modules = modules_of_common()
    graph = {
        module: {used for used in imports(tree(path)) if used in modules and used != module}
        for module, path in modules.items()
    }
    # A package's own parts import from each other and from outside, not from the package.
    graph = {module: used - {"common"} for module, used in graph.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError if there is one
    assert set(order) | {"common"} == set(modules)
    assert order.index("common.errors") < order.index("common.environments.vector")
    assert order.index("common.environments") < order.index("common.run")


# --- What every script has --------------------------------------------------------------------


@each_script
def test_docstring_is_complete(path):
    script = catalog.read_script(path)  # UserError names what is missing
    assert script.name in catalog.BOOK_ORDER
    assert script.summary
    docstring = ast.get_docstring(tree(path))
    headings = re.findall(r"^(\S.*)\n-{3,}$", docstring, re.MULTILINE)
    assert headings == list(catalog.SECTIONS)
    underlines = re.findall(r"^(\S.*)\n(-{3,})$", docstring, re.MULTILINE)
    assert all(len(heading) == len(line) for heading, line in underlines)
    assert f"python {script.relative}\n" in docstring  # the default command


def numbers_of_equations(docstring: str) -> list[int]:
    equations = docstring.partition("Equations\n---")[2].partition("\nDiffers")[0]
    return [int(number) for number in re.findall(r" \((\d+)\)$", equations, re.MULTILINE)]


@each_script
def test_equations_are_numbered_and_found_in_the_code(path):
    module = tree(path)
    numbers = numbers_of_equations(ast.get_docstring(module))
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers
    lines = path.read_text(encoding="utf-8").splitlines()[module.body[0].end_lineno :]
    code = "\n".join(lines)
    missing = [number for number in numbers if f"({number})" not in code]
    assert not missing


@each_script
def test_differences_from_the_book_are_numbered(path):
    text = ast.get_docstring(tree(path))
    text = text.partition("Differs from the book\n---")[2].partition("\nHow to run")[0]
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \S", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


@each_script
def test_length(path):
    lines = sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())
    limit = MAX_LINES_LONG if path.stem in LONG else MAX_LINES
    assert lines <= (MAX_LINES_TABULAR if path.stem.startswith(TABULAR) else limit)
    main = functions(tree(path))["main"]
    assert main.end_lineno - main.lineno + 1 <= MAX_LINES_MAIN


@each_script
def test_parts(path):
    module = tree(path)
    config = config_class(module)
    assert [ast.unparse(base) for base in config.bases] == ["RunConfig"]
    assert [ast.unparse(decorator) for decorator in config.decorator_list] == [
        "dataclass(frozen=True)"
    ]
    train, main = functions(module)["train"], functions(module)["main"]
    assert ast.unparse(train.args) == "config: Config"
    assert ast.unparse(train.returns) == "Result"
    assert [ast.unparse(decorator) for decorator in main.decorator_list] == ["command"]
    assert ast.unparse(module.body[-1]) == "if __name__ == '__main__':\n    main()"


def commented_lines(text: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / "common" / "config.py"], ids=name)
def test_every_flag_has_a_comment_for_help(path):
    text = path.read_text(encoding="utf-8")
    comments = commented_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.name in ("Config", "RunConfig"):
            fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            assert fields
            bare = [
                field.target.id
                for field in fields
                # On the same line, or on lines of their own right above.
                if not comments & {field.lineno, field.end_lineno}
                and not (
                    field.lineno - 1 in comments
                    and text.splitlines()[field.lineno - 2].lstrip().startswith("#")
                )
            ]
            assert not bare, f"fields without a comment: {bare}"


# --- Traps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.parent.name != "environments"], ids=name
)
def test_only_environments_touch_final_observations(path):
    assert "final_obs" not in path.read_text(encoding="utf-8")
    assert "final_observation" not in path.read_text(encoding="utf-8")


@each_source
def test_nothing_loads_code_from_files_and_nothing_predicts_slowly(path):
    module = tree(path)
    assert not packages(module) & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec"), f"line {node.lineno}"
            # 49 ms a call, where a compiled function takes 0.2 ms; Stable-Baselines3's is another.
            if path in SCRIPTS or path in COMMON:
                assert not called.endswith(".predict"), f"line {node.lineno}"
            allow = [k.value for k in node.keywords if k.arg == "allow_pickle"]
            assert all(ast.unparse(value) == "False" for value in allow), f"line {node.lineno}"


# --- READMEs ----------------------------------------------------------------------------------


def test_readme_tables_are_in_step_with_the_docstrings():
    for path, (text, expected) in catalog.updated_readmes().items():
        assert text == expected, f"{name(path)}: run `python -m common.catalog --update`"


@each_script
def test_a_script_whose_tests_do_without_xla_learns_with_it(path):
    tests = tree(ROOT / "tests" / path.parent.name / f"test_{path.stem}.py")
    if "pytestmark = pytest.mark.no_xla" in map(ast.unparse, tests.body):
        learning = re.compile("test_(learns|finds|swings|improves|what_only_memory)")
        assert any(
            learning.match(test.name) and "pytest.mark.xla" in map(ast.unparse, test.decorator_list)
            for test in tests.body
            if isinstance(test, ast.FunctionDef)
        )
