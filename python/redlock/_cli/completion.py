"""``redlock completion``: scripts for shells, made of what the parser takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redlock._cli.output import DONE
from redlock._cli.parser import build, options_of, short_helps, subcommands

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

BASH = """\
# bash completion of redlock
_redlock() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command= word words=
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in
            {commands}) command=$word; break ;;
        esac
    done
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        # What is run has completions of its own.
        [[ $command == run && $word == -- ]] && {{ COMPREPLY=($(compgen -c -f -- "$current")); return; }}
    done
    case $command in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _redlock redlock
"""

ZSH = """\
#compdef redlock
autoload -U +X bashcompinit && bashcompinit
{bash}"""


def completion(options: argparse.Namespace) -> int:
    """``redlock completion``."""
    parser = build()
    makers = {"bash": _bash, "zsh": lambda parser: ZSH.format(bash=_bash(parser)), "fish": _fish}
    print(makers[options.shell](parser), end="")  # noqa: T201
    return DONE


def _bash(parser: argparse.ArgumentParser) -> str:
    commands = subcommands(parser)
    cases = [f'        {name}) words="{_words(each)}" ;;' for name, each in commands.items()]
    cases.append(f'        *) words="{" ".join([*commands, *_flags(parser)])}" ;;')
    return BASH.format(commands="|".join(commands), cases="\n".join(cases))


def _words(parser: argparse.ArgumentParser) -> str:
    choices = [str(choice) for action in options_of(parser) for choice in action.choices or ()]
    return " ".join([*choices, *_flags(parser)])


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in options_of(parser) for flag in action.option_strings if flag.startswith("--")]


def _fish(parser: argparse.ArgumentParser) -> str:
    return "# fish completion of redlock\n" + "".join(f"complete -c redlock {line}\n" for line in _fish_lines(parser))


def _fish_lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    commands = subcommands(parser)
    helps = short_helps(parser)
    for name in commands:
        yield f"-n __fish_use_subcommand -f -a {name} -d {_quoted(helps[name])}"
    for name, each in {"": parser, **commands}.items():
        where = f"-n '__fish_seen_subcommand_from {name}'" if name else "-n __fish_use_subcommand"
        for action in options_of(each):
            for flag in action.option_strings:
                if flag.startswith("--"):
                    takes = "" if action.nargs == 0 else " -r"
                    yield f"{where} -l {flag[2:]}{takes} -d {_quoted(action.help)}"
            if action.choices and not action.option_strings and name:
                yield f"{where} -f -a {_quoted(' '.join(map(str, action.choices)))}"


def _quoted(text: str | None) -> str:
    return "'" + (text or "").replace("%%", "%").replace("\\", "\\\\").replace("'", "\\'") + "'"
