"""The manual pages say what the commands and the configuration say, and nothing else."""

import re
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from imagefs import config
from imagefs.cli.main import LazyGroup, imagefs
from imagefs.cli.mount_helper import mount_imagefs
from imagefs.identity.map import Identity
from imagefs.properties.policy import Policies
from imagefs.properties.policy_defaults import DEFAULTS, EARLIER
from imagefs.properties.protection import Protection

MANUAL = Path(__file__).parents[2] / "man"
PAGES = sorted(MANUAL.glob("*.[1-9]"))
_OPTION = re.compile(r"\bFl (-?\S+)")


def commands(group: click.Group = imagefs, path: str = "imagefs") -> dict[str, click.Command]:
    """Return every command that is not a group, by the words that call it."""
    context = click.Context(group)
    found: dict[str, click.Command] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found |= commands(command, f"{path} {name}") if isinstance(command, LazyGroup) else {f"{path} {name}": command}
    return found


def options(command: click.Command) -> set[str]:
    """Return the options that --help shows, but --help."""
    return {
        word
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
        for word in (*option.opts, *option.secondary_opts)
        if word not in {"-h", "--help"}
    }


def sections(page: Path) -> dict[str, list[str]]:
    """Return the lines of a page below each .Ss and .Sh heading."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in page.read_text().splitlines():
        if line.startswith((".Ss ", ".Sh ")):
            lines = found.setdefault(line[4:].replace("\\(dq", '"'), [])
        lines.append(line)
    return found


def documented_options(lines: list[str]) -> set[str]:
    """Return the options that items of lists describe."""
    return {f"-{name}" for line in lines if line.startswith(".It ") for name in _OPTION.findall(line)}


MANUAL_COMMANDS = {
    heading: lines for page in PAGES if page.suffix == ".8" for heading, lines in sections(page).items() if heading.startswith("imagefs ")
}


def test_every_command_has_its_section_and_the_reverse() -> None:
    """No command without a text, no text without a command."""
    assert set(MANUAL_COMMANDS) == set(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_options_of_help_and_manual_are_the_same(name: str) -> None:
    """Each option of --help is an item of the command's section, and the reverse."""
    assert documented_options(MANUAL_COMMANDS[name]) == options(commands()[name])


def test_global_options_are_the_same() -> None:
    """The options before the command are in imagefs(8)."""
    assert documented_options(sections(MANUAL / "imagefs.8")["DESCRIPTION"]) == options(imagefs) | {"-h", "--help"}


def test_mount_imagefs_is_the_same() -> None:
    """mount(8)'s helper too."""
    assert documented_options(sections(MANUAL / "imagefs-mount.8")["mount.imagefs"]) == options(mount_imagefs)


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_has_help(name: str) -> None:
    """--help says something about each option."""
    assert all(option.help for option in commands()[name].params if isinstance(option, click.Option) and not option.hidden)
    assert commands()[name].help
    assert commands()[name].short_help


def test_keys_of_configuration_and_manual_are_the_same() -> None:
    """Each key of the configuration is an item of imagefs.toml(5) in its section, and the reverse."""
    quote = '"'
    found = {
        f"{heading.strip('[]').replace(quote, '')}.{line.split()[2]}"
        for heading, lines in sections(MANUAL / "imagefs.toml.5").items()
        if heading.startswith("[")
        for line in lines
        if line.startswith(".It Va ")
    }
    assert found == set(config.all_keys())


def test_the_example_configuration_has_no_mistakes() -> None:
    """What imagefs.toml(5) shows can be used as it stands."""
    lines = sections(MANUAL / "imagefs.toml.5")["EXAMPLES"]
    text = "\n".join(line for line in lines if not line.startswith("."))
    found = config.parse(tomllib.loads(text), {}, "the example", Path("/data"), directory=Path("/etc/imagefs"))
    assert found.store.url == "s3://images/prod"


def test_every_policy_is_described_with_its_default() -> None:
    """imagefs-policy(5) has all names, no other ones, and below each the check that holds without a policy file."""
    found: dict[str, str] = {}
    for heading in ("What guards an operation", "What other rules refer to", "What guards nothing"):
        for item in "\n".join(sections(MANUAL / "imagefs-policy.5")[heading]).split(".It Cm ")[1:]:
            name, _, rest = item.partition("\n")
            check = rest.partition(".Bd -literal -compact\n")[2].partition("\n.Ed")[0]
            found[name] = check.replace("\\&", "").replace("\n", " ").removeprefix('""')
    assert found == DEFAULTS


def test_earlier_defaults_are_described() -> None:
    """Those that are not rule:default stand in imagefs-policy(5) with their names."""
    text = " ".join(sections(MANUAL / "imagefs-policy.5")["EARLIER DEFAULTS"])
    assert all(name in text and check in text for name, check in EARLIER.items() if check != "rule:default")


def test_the_examples_of_rules_are_sound(tmp_path: Path) -> None:
    """What imagefs-policy(5) and imagefs-protection(5) show can be used as it stands, and says what the text around it says."""

    def example(page: str, heading: str) -> str:
        text = "\n".join(sections(MANUAL / page)[heading])
        return text.partition(".Bd -literal -offset indent\n")[2].partition("\n.Ed")[0]

    (tmp_path / "policy.yaml").write_text(example("imagefs-policy.5", "THE POLICY FILE"))
    assert Policies.load(tmp_path / "policy.yaml").allows("get_images", {}, Identity(frozenset({"reader"})))
    (tmp_path / "policy.yaml").write_text('{"billing": "role:admin or role:billing"}')
    policies = Policies.load(tmp_path / "policy.yaml")
    for heading in ("Format roles", "Format policies"):
        (tmp_path / "rules.conf").write_text(example("imagefs-protection.5", heading))
        protection = Protection.load(tmp_path / "rules.conf", heading.removeprefix("Format "), policies)
        assert protection.allows("x_billing_code", "update", Identity(frozenset({"billing"})))
        assert not protection.allows("x_billing_code", "delete", Identity(frozenset({"billing"})))
        assert protection.allows("x_billing_code", "read", Identity())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_clean(page: Path) -> None:
    """There is nothing that mandoc warns of."""
    checked = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_refer_to_pages_that_are_there(page: Path) -> None:
    """A reference to a page of imagefs leads to one."""
    referred = {f"{name}.{section}" for name, section in re.findall(r"^\.Xr (imagefs\S*) (\d)", page.read_text(), re.MULTILINE)}
    assert referred <= {other.name for other in PAGES}
