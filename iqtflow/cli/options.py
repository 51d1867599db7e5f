"""Options of the commands, made from the table `iqtflow.config.SETTINGS`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from iqtflow.config import SETTINGS, Setting

#: Values of ``--skull-stripped``; None: look at the image.
SKULL_STRIPPED = {"yes": True, "no": False, "auto": None}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with the default of each option, as it is typed."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        stated = not action.option_strings or "(default: " in text
        if stated or action.default in (None, [], argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"

    def _expand_help(self, action: argparse.Action) -> str:
        shown = action.default
        if isinstance(shown, bool):
            shown = "yes" if shown else "no"
        elif isinstance(shown, tuple):
            shown = (" " if action.nargs else ",").join(map(str, shown))
        return self._get_help_string(action) % {"default": shown, "prog": self._prog}


def typed(item: Setting) -> Callable[[str], Any]:
    """Return the function with which argparse reads one value of a setting."""

    def read(text: str) -> Any:
        try:
            return item.read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected {item.expected_one}") from None

    return read


def value(kind: type, **limits: Any) -> Callable[[str], Any]:
    """Return the function with which argparse reads a value that is no setting.

    Parameters
    ----------
    kind
        Type of the value.
    limits
        Other attributes of `iqtflow.config.Setting`, such as ``low=1``.
    """
    return typed(Setting(section="", name="", kind=kind, **limits))


def add_option(group: Any, item: Setting, *flags: str, dest: str | None = None, **changes: Any) -> None:
    """Add the option of a setting to a parser or to a group of one.

    Parameters
    ----------
    group
        The parser or group.
    item
        The setting.
    flags
        Options in place of those of ``iqtflow``.
    dest
        Attribute of the parsed arguments; ``section__name`` by default.
    changes
        Arguments of ``add_argument`` in place of those that follow from the setting.
    """
    given: dict[str, Any] = {"dest": dest or f"{item.section}__{item.name}", "help": item.help}
    if item.action:
        given["action"] = item.action
    elif item.kind is bool:
        given["action"] = argparse.BooleanOptionalAction
    else:
        given |= {"type": typed(item), "metavar": item.metavar}
        if item.many and not item.separator:
            given["nargs"] = item.count or "+"
        elif not item.separator:
            given["choices"] = item.choices or None
        if item.default in (None, ()):
            given["help"] += f" (default: {item.shown})"
    group.add_argument(*(flags or item.flags), **{**given, **changes})


def add_command_options(group: Any, section: str, names: Iterable[str], **changes: Any) -> None:
    """Add settings as options of a small command; their attributes have the settings' names.

    Parameters
    ----------
    group
        A parser or a group of one.
    section, names
        The settings.
    changes
        As for `add_option`.
    """
    for name in names:
        item = SETTINGS[section][name]
        add_option(group, item, item.command_option, dest=name, **{"default": item.default, **changes})
