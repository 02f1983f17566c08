"""What a user may set, spelled once: a field of a config dataclass is an option.

    window_seconds: Annotated[
        float,
        Meta(ge=0.05, le=60),
        Option("Reconcile the model with the counter over this long.", "S"),
    ] = 0.5

Name, type, bounds, default and help of the command line's `--window` and of the
file's `window = 0.5` come from there. A field without an `Option` is not asked for;
a field whose type is such a dataclass contributes the options of that one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from msgspec import Meta

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is asked for."""

    help: str
    metavar: str | None = None
    _: KW_ONLY
    heading: str | None = None
    """Heading on the help page, of this option and of those after it."""
    name: str | None = None
    """Without dashes; None: the field's, less `_seconds`."""
    alias: str | None = None
    """A second name, on the command line."""
    key: str | None = None
    """In a file, where it is not the name."""
    parse: Callable[[Any], Any] | None = None
    """The value of a text, or of all texts of a `multiple`. Raises ValueError."""
    default: str | None = None
    """The text that means the field's default, where a text is parsed."""
    default_is: str | None = None
    """The default as the help page has it, where its text would not explain it."""
    choices: Collection[str] = ()
    multiple: bool = False
    is_table: bool = False
    """In a file it may be a table: of a `multiple` a KEY=VALUE for each key, else
    JSON."""
    bare: str | None = None
    """What the option alone, without a value, stands for."""
    has_opposite: bool = False
    """A flag that `--no-...` takes back."""
    zero_is_none: bool = False
    """0 stands for None: no bound."""
    is_folder: bool = False
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a config dataclass that a user may set."""

    field: str
    option: Option
    kind: type
    """Type of what is written: bool, int, float, Path, or str where it is parsed."""
    bounds: Meta | None
    default: Any
    """As it is written; None: there is none."""
    heading: str | None

    @property
    def name(self) -> str:
        """Its option without dashes."""
        named = self.option.name or self.field.removesuffix("_seconds")
        return named.replace("_", "-")

    @property
    def key(self) -> str:
        """Its key in a file."""
        return self.option.key or self.name

    @property
    def variable(self) -> str:
        """Its name among the parameters of a command."""
        return self.name.replace("-", "_")

    @property
    def decoded(self) -> Any:
        """The type of what is written in a file, as msgspec has it."""
        if self.option.choices:
            return Literal[tuple(self.option.choices)]
        if self.kind in (str, Path):
            plain = str | int | float | list[str | int | float]
            return plain | dict[str, Any] if self.option.is_table else plain
        return self.kind if self.bounds is None else Annotated[self.kind, self.bounds]

    def value(self, written: Any) -> Any:
        """The field's value. Raises ValueError for what cannot be parsed."""
        if written is None or (written == 0 and self.option.zero_is_none):
            return None
        return written if self.option.parse is None else self.option.parse(written)


def settings_of(config: type) -> tuple[Setting, ...]:
    """Every setting of a dataclass and of those it is made of, in order."""
    found: list[Setting] = []
    for _, part in _parts(config):
        found.extend([part] if isinstance(part, Setting) else settings_of(part))
    return tuple(found)


def configured(config: type[Config], values: dict[str, Any], **more: Any) -> Config:
    """A config of what was set; `more` are fields that nobody is asked for.

    Takes its own out of `values`, where a setting stands by its `variable` and any
    other field by its name; what is not there has its default.
    """
    parts = dict(_parts(config))  # type: ignore[arg-type]  # a type is hashable
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # a dataclass
        part = parts.get(field.name)
        name = part.variable if isinstance(part, Setting) else field.name
        if isinstance(part, type):
            more.setdefault(field.name, configured(part, values))
        elif name in values and field.name not in more:
            more[field.name] = values.pop(name)
    return config(**more)


def split_names(text: str) -> tuple[str, ...]:
    """Names that commas separate."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@cache
def _parts(config: type) -> tuple[tuple[str, Setting | type], ...]:
    """By field: what is asked for there, or the dataclass that is asked for there."""
    hints = get_type_hints(config, include_extras=True)
    heading: str | None = None
    found: list[tuple[str, Setting | type]] = []
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        plain, *notes = get_args(hint) if get_origin(hint) is Annotated else [hint]
        option = next((note for note in notes if isinstance(note, Option)), None)
        bounds = next((note for note in notes if isinstance(note, Meta)), None)
        if option is not None:
            heading = option.heading or heading
            kind = str if option.parse is not None else _without_none(plain)
            default = _default(field, option)
            setting = Setting(field.name, option, kind, bounds, default, heading)
            found.append((field.name, setting))
        elif isinstance(plain, type) and _is_configurable(plain):
            found.append((field.name, plain))
    return tuple(found)


def _is_configurable(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) and bool(_parts(kind))


def _default(field: dataclasses.Field[Any], option: Option) -> Any:
    if option.parse is not None:
        return option.default
    if option.zero_is_none and field.default is None:
        return 0
    return None if field.default is dataclasses.MISSING else field.default


def _without_none(hint: Any) -> type:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] or [hint]
    assert isinstance(kinds[0], type), hint
    return kinds[0]
