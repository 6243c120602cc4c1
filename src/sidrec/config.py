"""Configuration is data: TOML <-> nested frozen dataclasses, strictly.

A run is one TOML file that mirrors the dataclasses next to the methods they configure. Unknown key:
error naming the nearest valid one. Wrong type: error with expected and got. No interpolation, no
evaluation, no environment. The docstring under a field is its documentation everywhere: `to_toml`
writes it as a comment, `sidrec config show` prints it.

A section that chooses a method is a `Method`: its `name` key picks the row of `methods.py`, `train`
is a sub-section where the stage trains, the other keys are the method's own config. `seed` is set
once, at the top of the run, never in a method.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import json
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sidrec import methods
from sidrec.errors import ConfigError

T = TypeVar("T")
MAX_TOML_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Method:
    """One chosen method: a row of `methods.py` with its own config."""

    stage: str
    name: str
    config: Any = None
    """The method's own frozen config; None for methods without one."""
    train: Any = None
    """How to train it; None where nothing is trained by the loop."""


@dataclass(frozen=True)
class Stage:
    """Annotation of a `Method` field: which stage its name is looked up in."""

    name: str
    train: Callable[[str], Any] | None = None
    """Method name -> default training config, or None for a method that needs no training."""


def method(stage: Stage, name: str, **values: Any) -> Method:
    """The method `name` of a stage, `values` over its defaults, as a config section would say."""
    return _method(stage, {"name": name, **values}, stage.name)


def load(cls: type[T], path: str | Path) -> T:
    """Read a TOML file into `cls`. ConfigError says which file, which key, and the nearest one."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_TOML_BYTES} bytes; is it a recipe?")
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; `sidrec init` writes a recipe") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"{path} is not a readable file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    try:
        return parse(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(cls: type[T], values: Mapping[str, Any], *, where: str = "", base: T | None = None) -> T:
    """An instance of dataclass `cls`; keys that are absent keep the default, or that of `base`."""
    hints = typing.get_type_hints(cls, include_extras=True)
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(_unknown(_dot(where, key), key, list(known)))
    given = {}
    for key, value in values.items():
        default = known[key].default  # a section changes its default, not that of its class
        if is_dataclass(default) and isinstance(value, Mapping) and type(default) is hints[key]:
            given[key] = parse(type(default), value, where=_dot(where, key), base=default)
        else:
            given[key] = _convert(hints[key], value, _dot(where, key))
    missing = [
        name
        for name, f in known.items()
        if f.default is MISSING and f.default_factory is MISSING and name not in given
    ]
    if missing and base is None:
        raise ConfigError(f"{where or cls.__name__} needs {', '.join(missing)}")
    return cls(**given) if base is None else replace(base, **given)  # type: ignore[type-var]


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values; `parse` reads them back to an equal config. None fields are left out."""
    if isinstance(config, Method):
        plain: dict[str, Any] = {"name": config.name}
        if config.config is not None:
            plain |= {k: v for k, v in to_dict(config.config).items() if k != "seed"}
        return plain | ({"train": to_dict(config.train)} if config.train is not None else {})
    return {
        f.name: _plain(value)
        for f in fields(config)
        if f.init and (value := getattr(config, f.name)) is not None
    }


def to_toml(config: Any, *, comments: bool = True) -> str:
    """The config as TOML text, field docstrings as comments above the keys."""
    return "\n".join(_emit(config, "", comments)).strip() + "\n"


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the docstring written under it, as one line; '' where there is none."""
    docs = {f.name: "" for f in fields(cls)}
    for owner in reversed(cls.__mro__):
        if not is_dataclass(owner):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        except (OSError, TypeError):  # a class without source, made at run time
            continue
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for node, after in itertools.pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                docs[node.target.id] = " ".join(after.value.value.split())
    return docs


def with_seed(config: Any, seed: int) -> Any:
    """The config with the run's seed where it has one. ConfigError where it is no seed."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be a whole number in [0, 2^32), got {seed}")
    has_seed = is_dataclass(config) and any(f.name == "seed" for f in fields(config))
    return replace(config, seed=seed) if has_seed else config  # type: ignore[type-var]


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        stage = next((a for a in args[1:] if isinstance(a, Stage)), None)
        return _method(stage, value, where) if stage else _convert(args[0], value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return _convert(option, value, where)
            except ConfigError as error:
                errors.append(error)
        raise errors[0] if len(errors) == 1 else ConfigError(_wrong(where, hint, value))
    if origin is typing.Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where} must be one of {list(args)}, got {value!r}{hint_text}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(_wrong(where, hint, value))
        if origin is tuple and args[-1] is not Ellipsis:
            if len(value) != len(args):
                raise ConfigError(f"{where} must have {len(args)} entries, got {len(value)}")
            parts = zip(args, value, strict=True)
        else:
            parts = ((args[0], v) for v in value)
        return origin(_convert(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(parts))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(_wrong(where, hint, value))
        return {str(k): _convert(args[1], v, _dot(where, str(k))) for k, v in value.items()}
    if is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a section of keys, got {value!r}")
        return parse(typing.cast(type, hint), value, where=where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is Any:
        return value
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        raise ConfigError(_wrong(where, hint, value))
    return value


def _method(stage: Stage, value: Any, where: str) -> Method:
    if isinstance(value, Method):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(
            f"{where} must name a method, e.g. name = {methods.names(stage.name)[0]!r}; "
            f"have {methods.names(stage.name)}"
        )
    name = value["name"]
    target = methods.resolve(stage.name, name)
    own = {k: v for k, v in value.items() if k not in ("name", "train")}
    if "seed" in own:
        raise ConfigError(f"{where}.seed is not a key: set `seed` once, at the top of the run")
    config_class = getattr(target, "config_class", None)
    if config_class is None and own:
        raise ConfigError(f"{where}: {name} takes no keys but name, got {sorted(own)}")
    config = None if config_class is None else parse(config_class, own, where=where)
    train = stage.train(name) if stage.train else None
    if "train" in value:
        if train is None:
            raise ConfigError(f"{where}.train: {name} is not trained by the loop; drop the section")
        train = parse(type(train), value["train"], where=_dot(where, "train"), base=train)
    return Method(stage=stage.name, name=name, config=config, train=train)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _emit(config: Any, prefix: str, comments: bool) -> list[str]:
    """Lines of one section: plain keys first, then sub-sections, as TOML demands."""
    if isinstance(config, Method):
        lines, sections = [f"name = {json.dumps(config.name)}"], []
        if config.config is not None:
            lines += _emit(config.config, prefix, comments)
        if config.train is not None:
            name = _dot(prefix, "train")
            sections = ["", f"[{name}]", *_emit(config.train, name, comments)]
        return lines + sections
    docs = field_docs(type(config)) if comments else {}
    keys: list[str] = []
    sections: list[str] = []
    for f in fields(config):
        value = getattr(config, f.name)
        if not f.init or (f.name == "seed" and prefix):
            continue
        name = _dot(prefix, f.name)
        comment = [f"# {line}" for line in textwrap.wrap(docs.get(f.name, ""), 96)]
        if is_dataclass(value):
            sections += ["", *comment, f"[{name}]", *_emit(value, name, comments)]
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            sections += ["", *comment]
            for part in value:
                sections += [f"[[{name}]]", *_emit(part, name, comments), ""]
        elif value is not None:
            keys += [*comment, f"{f.name} = {_toml(_plain(value))}"]
        elif comments:
            keys += [*comment, f"# {f.name} = (not set)"]
    return keys + sections


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, (str, bool)):  # JSON strings are TOML basic strings
        return json.dumps(value, ensure_ascii=True)
    return repr(value)


def _unknown(where: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{where} is not a known key; {hint}"


def _wrong(where: str, hint: Any, value: Any) -> str:
    expected = getattr(hint, "__name__", None) if not typing.get_origin(hint) else None
    return f"{where} must be {expected or hint}, got {value!r} ({type(value).__name__})"


def _dot(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
