"""Private names of Ray that rayad uses: these, each for a reason that stands here, and no others."""

import ast
from collections.abc import Iterator
from pathlib import Path

import rayad

ROOT = Path(rayad.__file__).parent
REASONS = {
    "ray._raylet.AuthenticationTokenLoader": "a Ray of our own asks for a token also where Ray was imported before",
    "ray._raylet.Config": "the same: it reads the environment once, when it is imported",
    "ray.serve.context._get_global_client": "where the proxy of a Ray Serve that runs already listens",
    "ray.init(_temp_dir=)": "its sessions lie in a folder that nobody else may enter",
    "JobConfig._py_driver_sys_path": "workers would look for modules among a stranger's images",
    "JobConfig._serialize": "the same, where that path is handed over",
}


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def used(file: Path) -> Iterator[str]:
    """Private names of Ray in a module: imported, given to ray.init, or of its job's configuration."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] == "ray":
                yield from (f"{module}.{alias.name}" for alias in names if private(f"{module}.{alias.name}"))
            case ast.Import(names=names):
                yield from (a.name for a in names if a.name.partition(".")[0] == "ray" and private(a.name))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="ray"), attr=attribute), keywords=keywords):
                yield from (f"ray.{attribute}({k.arg}=)" for k in keywords if k.arg and private(k.arg))
            case ast.ClassDef(bases=bases, body=body) if any(
                isinstance(b, ast.Name) and b.id == "JobConfig" for b in bases
            ):
                inner = [n for n in ast.walk(ast.Module(body, [])) if isinstance(n, ast.Attribute | ast.FunctionDef)]
                names_of_job = {n.attr if isinstance(n, ast.Attribute) else n.name for n in inner}
                yield from (f"JobConfig.{name}" for name in names_of_job if private(name))


def test_every_private_name_of_ray_has_its_reason():
    names = {name for file in ROOT.rglob("*.py") for name in used(file)}
    assert names == set(REASONS)
