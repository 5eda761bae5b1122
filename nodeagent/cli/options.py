"""Options of the programs that stay: declared once, read in the common case without the library of the command line.

That library costs a process 12 MB for as long as it runs. So a command line that is plainly right is read here;
anything else (`--help`, a mistake, a value that needs judging) is left to typer, made from the same declaration.
"""

from __future__ import annotations

import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeAlias

Function: TypeAlias = Callable[..., None]

_INTEGER: Final = re.compile(r"[0-9]+")
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Option:
    """`--name VALUE` of a parameter, also from the variable NODEAGENT_NAME; used in Annotated[type, Option(...)]."""

    name: str
    text: str
    metavar: str | None = None
    variable: str = ""
    """Another variable, by which the field knows it; that of ours goes first."""
    panel: str | None = None
    """Heading of the help under which it is listed."""
    choices: tuple[str, ...] = ()
    """The values it may have; none: any."""

    @property
    def variables(self) -> list[str]:
        """The variables to look at, in order."""
        own = f"NODEAGENT_{self.name.upper().replace('-', '_')}"
        return [own, self.variable] if self.variable else [own]


class _Unsure(Exception):
    """The command line is not plainly right."""


class Command:
    """A function whose parameters are all options, as a command; called as a typer.Typer is."""

    def __init__(self, function: Function) -> None:
        self._function = function

    @property
    def options(self) -> list[Option]:
        """What may be given on its command line."""
        return [parameter.option for _, parameter in _parameters(self._function)]

    def __call__(self, args: list[str], prog_name: str) -> None:
        """Run the command; exits as typer does where the command line is wrong."""
        values = read(self._function, args)
        if values is None:
            _typer_app(self._function)(args=args, prog_name=prog_name)
        else:
            self._function(**values)


@dataclass(frozen=True, slots=True)
class _Parameter:
    option: Option
    kind: Any
    """str, int, float or Path."""
    repeatable: bool


def read(function: Function, arguments: list[str]) -> dict[str, Any] | None:
    """Read a command line and the environment: parameter -> value; None if typer is to judge it."""
    parameters = dict(_parameters(function))
    by_flag = {f"--{parameter.option.name}": name for name, parameter in parameters.items()}
    try:
        texts = _texts(arguments, by_flag)
        for name in parameters.keys() - texts.keys():
            texts[name] = _from_environment(parameters[name])
        values = {name: _value(parameters[name], found) for name, found in texts.items() if found}
    except _Unsure:
        return None
    given = inspect.signature(function).parameters
    needed = {name for name, parameter in given.items() if parameter.default is parameter.empty}
    return values if needed <= values.keys() else None


def _parameters(function: Function) -> Iterator[tuple[str, _Parameter]]:
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name == "return":
            continue
        kind, option = typing.get_args(hint)
        if NoneType in typing.get_args(kind):
            kind = next(part for part in typing.get_args(kind) if part is not NoneType)
        repeatable = typing.get_origin(kind) is list
        yield name, _Parameter(option, typing.get_args(kind)[0] if repeatable else kind, repeatable)


def _texts(arguments: list[str], by_flag: dict[str, str]) -> dict[str, list[str]]:
    """The texts given for each parameter, in order."""
    found: dict[str, list[str]] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, text = argument.partition("=")
        if not equals:
            text = next(rest, "-")
        if flag not in by_flag or text.startswith("-"):
            raise _Unsure
        found.setdefault(by_flag[flag], []).append(text)
    return found


def _from_environment(parameter: _Parameter) -> list[str]:
    text = next(filter(None, map(os.environ.get, parameter.option.variables)), "")
    if parameter.repeatable:
        return text.split(os.pathsep) if text and parameter.kind is Path else text.split()
    return [text] if text else []


def _value(parameter: _Parameter, texts: list[str]) -> Any:
    values = [_converted(parameter, text) for text in texts]
    return values if parameter.repeatable else values[-1]


def _converted(parameter: _Parameter, text: str) -> Any:
    choices = parameter.option.choices
    if choices and text not in choices:
        raise _Unsure
    if parameter.kind is str:
        return text
    if parameter.kind is Path and text:
        return Path(text)
    if parameter.kind is int and _INTEGER.fullmatch(text):
        return int(text)
    if parameter.kind is float and _NUMBER.fullmatch(text):
        return float(text)
    raise _Unsure


def _typer_app(function: Function) -> Any:
    """The function as an application of typer's."""
    import typer

    def stand_in(**values: Any) -> None:
        function(**values)

    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in _parameters(function):
        kind = typing.get_args(hints[name])[0]
        hints[name] = typing.Annotated[kind, _typer_option(parameter.option)]
    signature = inspect.signature(function)
    stand_in.__doc__ = function.__doc__
    stand_in.__name__ = function.__name__
    stand_in.__annotations__ = hints
    parameters = [value.replace(annotation=hints[name]) for name, value in signature.parameters.items()]
    stand_in.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(stand_in)
    return app


def _typer_option(option: Option) -> Any:
    import typer

    def check(value: str) -> str:
        if value not in option.choices:
            raise typer.BadParameter(f"must be one of {', '.join(option.choices)}")
        return value

    return typer.Option(
        f"--{option.name}",
        envvar=option.variables if option.variable else option.variables[0],
        help=option.text,
        metavar=option.metavar,
        rich_help_panel=option.panel,
        callback=check if option.choices else None,
    )
