"""Every command: its help, its exit codes, and no traceback for a user's mistake."""

import argparse
import importlib
from collections.abc import Iterator

import pytest
from conftest import make_dataset

from reid.__main__ import COMMANDS, main
from reid.commands import reported
from reid.commands.flags import Parser
from reid.errors import CheckFailed, InputError, Interrupted, MissingInput


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its actions, such as `gallery add`."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def exits(argv: list[str], capsys) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    try:
        code = main(argv)
    except SystemExit as e:  # argparse's way to end
        code = e.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_help_lists_every_command(capsys):
    code, out, err = exits(["--help"], capsys)
    assert code == 0 and not err
    for name, (_, what) in COMMANDS.items():
        assert f"    {name} " in out and what.split()[0] in out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys):
    code, out, err = exits([name, "--help"], capsys)
    assert code == 0 and not err
    assert out.startswith(f"usage: python -m reid {name}") and "--debug" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_help_text(name):
    parser = Parser(conflict_handler="resolve")
    importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
    flags = [a for p in parsers(parser) for a in p._actions if not isinstance(a, argparse._SubParsersAction)]
    assert len(flags) > 1  # more than --help
    assert [a.option_strings or a.dest for a in flags if not a.help] == []
    for inner in parsers(parser):
        inner.format_help()  # a stray % in a text would raise


@pytest.mark.parametrize("argv", [[], ["nothing"], *([name, "--no_such_flag"] for name in COMMANDS)], ids=" ".join)
def test_bad_usage_exits_with_2(argv, capsys):
    code, out, err = exits(argv, capsys)
    assert code == 2 and not out and "error: " in err


@pytest.mark.parametrize("argv", [
    ["evaluate", "--weights", "{}/none.pth"],
    ["check", "none", "--dataset_path", "{}"],
    ["compare", "{}/a", "{}/b"],
    ["export", "--weights", "{}/none.pth", "--format", "pth", "--out", "{}/out.pth"],
    ["extract", "--weights", "{}/none.pth", "--images", "{}", "--out", "{}/f.h5"],
    ["gallery", "info", "{}/none.h5"],
    ["import", "{}/none.pth", "{}/out.pth"],
    ["prepare", "none", "--dataset_path", "{}"],
    ["report", "{}/none"],
    ["table", "{}/none"],
    ["train", "--dataset_type", "none", "--dataset_path", "{}", "--exp_dir", "{}/logs"],
], ids=lambda argv: argv[0])  # fmt: skip
def test_missing_input_exits_with_2(argv, tmp_path, capsys):
    code, _, err = exits([a.format(tmp_path) for a in argv], capsys)
    assert code == 2 and err.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_done_exits_with_0_and_a_failed_check_with_1(tmp_path, capsys):
    folder = make_dataset(tmp_path / "one")
    argv = ["check", "one", "--dataset_path", str(tmp_path)]
    assert exits(argv, capsys)[0] == 0
    sorted((folder / "images").iterdir())[0].unlink()
    code, out, _ = exits(argv, capsys)
    assert code == 1 and "error: " in out


@pytest.mark.parametrize("error, code, said", [
    (InputError("x is 3; use 4"), 2, "error: x is 3; use 4"),
    (MissingInput("x does not exist"), 2, "error: x does not exist"),
    (PermissionError(13, "Permission denied", "x"), 2, "error: [Errno 13] Permission denied: 'x'"),
    (CheckFailed("x and y differ"), 1, "error: x and y differ"),
    (Interrupted("stopped after step 3"), 130, "stopped after step 3"),
    (KeyboardInterrupt(), 130, "stopped"),
], ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None)  # fmt: skip
def test_exit_code_and_message_of_an_error(error, code, said, capsys):
    def work():
        raise error

    assert reported(work, debug=False) == code
    assert capsys.readouterr().err == said + "\n"
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            reported(work, debug=True)


def test_an_error_of_the_program_keeps_its_traceback():
    def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        reported(work, debug=False)


@pytest.mark.parametrize("arguments, words", [
    (["trian"], "unknown command 'trian' (did you mean train?)"),
    (["--debug", "train"], "unknown argument '--debug' (give it after the command)"),
    (["train", "--max_loss", "1"], "unknown argument '--max_loss' (a flag of evaluate, extract, gallery, export);"),
    (["evaluate", "--rerankk"], "(did you mean --rerank?); python -m reid evaluate --help lists all"),
])  # fmt: skip
def test_mistyped_commands(arguments, words, capsys):
    with pytest.raises(SystemExit) as e:
        main(arguments)
    assert e.value.code == 2 and words in capsys.readouterr().err
