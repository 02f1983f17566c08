"""Commands whose options are the settings of a config dataclass, by heading.

Written here because nothing published does it over click: what makes options from
dataclasses brings a parser of its own or a validation framework, and each costs
more at every start than all of this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from proxy.process.options import Setting, configured, settings_of

Function = Callable[..., Any]


class HeadedOption(click.Option):
    """An option that stands under a heading of the help page."""

    def __init__(self, *names: Any, heading: str | None, **more: Any) -> None:
        super().__init__(*names, **more)
        self.heading = heading


class Command(click.Command):
    """Shows its options under their headings, and help for `-h` too."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """In this order; whatever the context, so that no caller can differ."""
        return ["-h", "--help"]

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """A section for each heading; `Options` for what has none, at the end."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = getattr(parameter, "heading", None) or "Options"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class CommandGroup(Command, click.Group):
    """A group of such commands."""

    command_class = Command

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Its options, then its commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def asks_for(config: type) -> Callable[[Function], Function]:
    """Give a command every option of a dataclass; one is its first argument.

    An argument of the command that has the name of a field is that field.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(**values: Any) -> Any:
            return function(configured(config, values), **values)

        return with_options(settings_of(config))(call)

    return decorate


def with_options(settings: Iterable[Setting]) -> Callable[[Function], Function]:
    """Give a command an option for each setting, in this order."""

    def decorate(function: Function) -> Function:
        for setting in reversed(tuple(settings)):
            function = _option(setting)(function)
        return function

    return decorate


def given(context: click.Context) -> set[str]:
    """The variables of the settings that the command line itself sets."""
    return {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _option(setting: Setting) -> Callable[[Function], Function]:
    option, default = setting.option, setting.default
    names = [f"--{setting.name}"]
    if option.has_opposite:
        names = [f"--{setting.name}/--no-{setting.name}"]
    if option.alias is not None:
        names.append(f"--{option.alias}")
    more: dict[str, Any] = {}
    if default is not None or setting.kind is bool:
        more["default"] = default
    if setting.kind is bool:
        more["is_flag"] = True
    else:
        more["type"] = _type(setting)
    if option.bare is not None:
        more |= {"is_flag": False, "flag_value": option.bare}
    help = option.help
    if option.default_is is not None:
        help += f"  [default: {option.default_is}]"
    elif default is not None and default is not False and default != "":
        more["show_default"] = True
    return click.option(
        *names, setting.variable, cls=HeadedOption, heading=setting.heading,
        help=help, metavar=option.metavar, multiple=option.multiple,
        hidden=option.is_hidden, callback=_callback(setting), **more,
    )  # fmt: skip


def _callback(setting: Setting) -> Callable[..., Any]:
    def value(context: click.Context, option: click.Parameter, written: Any) -> Any:
        try:
            return setting.value(written)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return value


def _type(setting: Setting) -> Any:
    option, bounds = setting.option, setting.bounds
    if option.choices:
        return click.Choice(tuple(option.choices))
    if setting.kind is Path:
        return click.Path(path_type=Path, file_okay=not option.is_folder)
    if bounds is None or setting.kind is str:
        return setting.kind
    bounded: Any = click.IntRange if setting.kind is int else click.FloatRange
    return bounded(
        bounds.gt if bounds.ge is None else bounds.ge,
        bounds.lt if bounds.le is None else bounds.le,
        min_open=bounds.gt is not None,
        max_open=bounds.lt is not None,
    )
