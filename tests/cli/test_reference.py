from __future__ import annotations

from tests.cli.reference import PAGE, commands, reference


def test_the_reference_lists_the_flags_of_every_command_as_they_are():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run make docs"


def test_every_command_and_every_flag_has_a_help_text():
    for command in commands().values():
        assert command.help
        assert all(parameter.help for parameter in command.params)
