"""Tables, JSON and bare values."""

import errno
import json

import click
import pytest

from imagefs.cli.output import Shape, print_list, print_object
from imagefs.errors import ImagefsError, InvalidInput

COLUMNS = ("ID", "Name", "Server")
ROWS = [("1", "short", None), ("2", "a longer name", "web1")]


def test_a_table_in_a_pipe_has_no_borders(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are aligned by blanks, so that awk and people can read them."""
    print_list(COLUMNS, ROWS, Shape())
    assert capsys.readouterr().out == "ID  Name           Server\n1   short\n2   a longer name  web1\n"


def test_wide_characters_keep_columns_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """A character of two cells counts as two."""
    print_list(("A", "B"), [("漢字", "x"), ("abcd", "y")], Shape())
    assert capsys.readouterr().out == "A     B\n漢字  x\nabcd  y\n"


def test_a_table_on_a_terminal_has_borders(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is drawn by rich if somebody looks at it, and what looks like markup in a name is only a name."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_list(COLUMNS, [("1", "[red]x[/red]", None)], Shape())
    printed = capsys.readouterr().out
    assert "[red]x[/red]" in printed
    assert len(printed.splitlines()) == 5


def test_a_very_long_table_on_a_terminal_has_no_borders(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take minutes to draw."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_list(("A", "B"), [("x", str(number)) for number in range(501)], Shape())
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[0], lines[-1]) == (502, "A  B", "x  500")


def test_a_long_value_is_folded_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest that is wider than the terminal is shown whole, on several lines."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    print_object({"os_hash_value": "Z" * 128}, Shape(), "x")
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert printed.count("Z") == 128


def test_json_has_every_value_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A list is a list of objects, with null for what is not there."""
    print_list(COLUMNS, ROWS, Shape("json"))
    assert json.loads(capsys.readouterr().out)[0] == {"ID": "1", "Name": "short", "Server": None}
    print_object({"size": 5, "protected": False, "tags": ["a", "b"], "text": "a\nb"}, Shape("json"), "x")
    assert json.loads(capsys.readouterr().out) == {"size": 5, "protected": False, "tags": ["a", "b"], "text": "a\nb"}


def test_values_are_lines_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """A row is one line, and a field is one line, whatever is in it."""
    print_list(COLUMNS, ROWS, Shape("value", ("server", "id")))
    assert capsys.readouterr().out == "1 None\n2 web1\n"
    print_object({"a": "x\ny", "b": True, "c": ["t"]}, Shape("value"), "x")
    assert capsys.readouterr().out == 'x\\ny\ntrue\n["t"]\n'


def test_unknown_columns_are_refused() -> None:
    """A column of a list that does not exist is wrong usage; a field that this object lacks is a failure."""
    with pytest.raises(click.BadParameter, match="choose from ID, Name, Server"):
        print_list(COLUMNS, ROWS, Shape(columns=("Colour",)))
    with pytest.raises(InvalidInput, match="image x has no 'colour'"):
        print_object({"a": 1}, Shape(columns=("colour",)), "image x")


def test_an_empty_list_has_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    """No rows are no error."""
    print_list(COLUMNS, [], Shape())
    assert capsys.readouterr().out == "ID  Name  Server\n"


@pytest.mark.parametrize("shape", [Shape(), Shape("json"), Shape("value")])
def test_output_that_cannot_be_written_is_told(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk behind standard output is not taken for one of the store's."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(click, "echo", refuse)
    with pytest.raises(ImagefsError, match="cannot be written to standard output: No space left on device"):
        print_object({"id": "1"}, shape, "it")
