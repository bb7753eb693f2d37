"""Flags of a stage's command line: Hydra's, and refusals of others in a sentence."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

from asap_exp.core.conf_files import group_folders
from asap_exp.core.errors import UserError
from asap_exp.core.overrides import schemas_of
from asap_exp.core.schema import all_keys, closest, elsewhere

SETTINGS = "settings are KEY=VALUE"


def parsed(stage: str, words: Sequence[str], schema: type) -> Namespace:
    """Return what Hydra reads of a command line: its flags, and the overrides.

    Raises UserError for other flags, with the key that was probably meant.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    check_flags(stage, words, schema, parser)

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; {SETTINGS}, and --hydra-help lists Hydra's own flags")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(words)


def check_flags(stage: str, words: Sequence[str], schema: type, parser: ArgumentParser) -> None:
    """Raise UserError for a setting in a form that is not Hydra's.

    Such are a long flag, as --epochs 3 or --epochs=3, and a key without =, as epochs 3.
    """
    known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        is_flag = flag.startswith("--") and not any(each.startswith(flag) for each in known)
        takes_following = not equals and is_bare(following)
        if not is_flag and not (is_bare(flag) and takes_following):
            continue
        if takes_following:
            value = following
            word = f"{word} {following}"
        key = meant_key(stage, flag.lstrip("-").replace("-", "_"), schema)
        if not is_flag and (key is None or key.split(".")[-1] != flag.split(".")[-1]):
            continue  # two words that may be anything
        hint = f". Did you mean {key}={value or 'VALUE'}?" if key else ""
        raise UserError(f"{word} is not an argument: {SETTINGS}{hint}")


def is_bare(word: str) -> bool:
    """Return whether a word is neither a flag nor a setting."""
    return bool(word) and "=" not in word and not word.startswith(("-", "~"))


def meant_key(stage: str, name: str, schema: type) -> str | None:
    """Return the key, group or key in any group of a stage that `name` most likely means."""
    kinds = schemas_of(stage, schema)
    keys = list(dict.fromkeys(key for kind in kinds for key in all_keys(kind)))
    if name in keys or group_folders(stage, name):
        return name
    last = {key.rpartition(".")[2]: key for key in reversed(keys)}
    if found := next((each for kind in kinds if (each := elsewhere(name, kind))), None):
        return found[0]
    close = closest(name, list(last))
    return last[close[0]] if close else None
