"""Every command line of Kvasir in the chart and in compose.yaml, kept for whoever holds the parser against them."""

import json

import yaml

import chart
from tools import DEPLOY, is_golden

COMPOSE = "compose.yaml"


def all_commands():
    """By set of values and container, and by service of compose.yaml: arguments as the program gets them."""
    found = {values: chart.commands(values) for values in chart.SETS}
    return found | {COMPOSE: compose_commands()}


def compose_commands():
    services = yaml.safe_load((DEPLOY / COMPOSE).read_text())["services"]
    return {
        name: [_with_defaults(argument) for argument in service["command"]]
        for name, service in services.items()
        if service["image"].startswith("kvasir:")
    }


def _with_defaults(argument):
    """`${NAME:-default}` as an environment without NAME has it."""
    before, found, rest = argument.partition("${")
    if not found:
        return argument
    variable, _, after = rest.partition("}")
    return before + variable.partition(":-")[2] + after


def test_every_role_is_started_in_every_set():
    for place, commands in all_commands().items():
        assert {arguments[0] for arguments in commands.values()} >= {"coordinator", "worker"}, place


def test_coordinators_and_workers_agree():
    """A worker that differs would be refused."""
    shared = ("--model=", "--revision=", "--kv-dtype=", "--weights-dtype=", "--block-size=", "--device=", "--gpu-mode=")
    for place, commands in all_commands().items():
        said = {
            tuple(argument for argument in arguments if argument.startswith(shared))
            for arguments in commands.values()
            if arguments[0] in ("coordinator", "worker")
        }
        assert len(said) == 1, f"{place}: {said}"


def test_command_lines_are_the_ones_that_are_kept():
    text = json.dumps(all_commands(), indent=2) + "\n"
    assert is_golden("commands.json", text), "command lines changed; KVASIR_WRITE_GOLDEN=1 keeps them"
