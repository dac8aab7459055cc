from __future__ import annotations

from tests.cli.reference import README, commands, rewritten


def test_the_readme_lists_the_flags_of_every_command_as_they_are():
    text = README.read_text()
    assert rewritten(text) == text, "run make docs"


def test_every_command_and_every_flag_has_a_help_text():
    for command in commands().values():
        assert command.help
        assert all(parameter.help for parameter in command.params)
