"""Files of variables, the environment that comes of them, and variables in command lines."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import environment
from osmoda.supervisor.units.unit import EnvironmentFile, Origin
from tests.unit_hosts import service

ORIGIN = Origin("/units/agent.service", 7)


def variables(text):
    return [(line.name, line.value) for line in environment.variables(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\nB = two words \n", [("A", "1"), ("B", "two words")]),
        ("# A=1\n; B=2\n  #C=3\n\nD=4", [("D", "4")]),
        ("# a comment \\\nA=1\n", [("A", "1")]),
        ("A='one\ntwo'\nB=3\n", [("A", "one\ntwo"), ("B", "3")]),
        ("A='a\\b' \"c\"d", [("A", "a\\bcd")]),
        ('A="a\\"b\\\\c\\$d\\`e\\nf"', [("A", 'a"b\\c$d`e\\nf')]),
        ('A="one \\\ntwo"', [("A", "one two")]),
        ("A=one \\\n  two\\ \nB=1", [("A", "one   two "), ("B", "1")]),
        ("A=it's", [("A", "it's")]),
        ("A=\\'x\\'", [("A", "'x'")]),
        ("A=#x ;y", [("A", "#x ;y")]),
        ("A=", [("A", "")]),
        ("A", []),
        ("export A=1", [("export A", "1")]),
        ("A=1\r\nB=2\r\n", [("A", "1"), ("B", "2")]),
        ("A='not closed\nB=2", [("A", "not closed\nB=2")]),
        ("A=1\0B=2", [("A", "1")]),
    ],
)
def test_what_a_file_of_variables_says(text, expected):
    assert variables(text) == expected


def test_lines_are_counted():
    found = environment.variables("\n# x\nA='1\n2'\n\nB=3\n")
    assert [(line.name, line.line) for line in found] == [("A", 3), ("B", 6)]


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,5}", fullmatch=True), st.text(st.characters(exclude_characters="\0'"))))
def test_single_quotes_keep_everything(expected):
    assert variables("".join(f"{name}='{value}'\n" for name, value in expected.items())) == [*expected.items()]


@given(st.text())
def test_any_text_is_read(text):
    for line in environment.variables(text):
        assert "\0" not in line.value
        assert 1 <= line.line <= text.count("\n") + 1


# A unit's environment


def test_the_order_of_sources(tmp_path, monkeypatch):
    (tmp_path / "first").write_text("B=first\nC=first\nD=first\n")
    (tmp_path / "second").write_text("C=second\nexport E=1\n")
    monkeypatch.setenv("PASSED", "from outside")
    monkeypatch.setenv("KEPT_OUT", "secret")
    unit = service(
        "[Service]\nExecStart=/bin/true\nEnvironment=A=unit B=unit P=unit\nPassEnvironment=PASSED NOT_THERE\n"
        f"EnvironmentFile={tmp_path}/first\nEnvironmentFile={tmp_path}/second\nEnvironmentFile=-{tmp_path}/none\n"
        "UnsetEnvironment=D P=unit A=other\n"
    )
    ignored = []
    found = environment.environment_of(unit, {"PATH": "/bin", "A": "base"}, ignored)
    assert found == {"PATH": "/bin", "A": "unit", "B": "first", "C": "second", "PASSED": "from outside"}
    assert ignored == [f"{tmp_path}/second:2: this line is left out, since no variable can have such a name"]


def test_a_pattern_of_files(tmp_path):
    for name, text in (("a.env", "A=a\nB=a"), ("b.env", "B=b"), (".hidden.env", "C=1")):
        (tmp_path / name).write_text(text)
    assert environment.read_file(EnvironmentFile(f"{tmp_path}/*.env", False, ORIGIN)) == {"A": "a", "B": "b"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"A=1\nB=secret\xff"), "is not UTF-8"),
        (lambda path: path.write_bytes(b"A" * (environment.LARGEST_FILE + 1)), "is longer than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, make, says):
    path = tmp_path / "secrets.env"
    make(path)
    with pytest.raises(UnitError, match=says) as refused:
        environment.read_file(EnvironmentFile(str(path), False, ORIGIN))
    assert "secret\\" not in str(refused.value).replace("secrets.env", "")
    assert environment.read_file(EnvironmentFile(str(path), True, ORIGIN)) == {}


def test_a_fifo_does_not_hold_up_the_start(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert environment.read_file(EnvironmentFile(str(tmp_path / "fifo"), False, ORIGIN)) == {}


@pytest.mark.parametrize("name", ["agent.env", "conf/agent.env", "*.env"])
def test_no_link_is_followed_where_the_agent_writes(tmp_path, name):
    """It could make its file of variables lead to one that only the supervisor may read, and be given its lines."""
    secret, tree = tmp_path / "secret", tmp_path / "tree"
    secret.mkdir()
    tree.mkdir()
    (secret / "agent.env").write_text("TOKEN=of-somebody-else\n")
    if name.startswith("conf"):
        (tree / "conf").symlink_to(secret)
    else:
        (tree / "agent.env").symlink_to(secret / "agent.env")
    file = EnvironmentFile(f"{tree}/{name}", False, ORIGIN)
    assert environment.read_file(file) == {"TOKEN": "of-somebody-else"}, "in other trees a link is one"
    with pytest.raises(UnitError, match="through a link in a tree that the agent writes"):
        environment.read_file(file, written=(str(tree),))
    if not name.startswith("conf"):
        (tree / "agent.env").unlink()
        (tree / "agent.env").write_text("OWN=1\n")
        assert environment.read_file(file, written=(str(tree),)) == {"OWN": "1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="makes links of another user's")
@pytest.mark.parametrize("name", ["agent.env", "conf/agent.env"])
def test_a_link_of_another_user_leads_to_no_file_that_is_not_theirs(tmp_path, name):
    """A daemon of root's would hand out what only root may read, to whoever owns the folder of an agent."""
    secret, home = tmp_path / "secret", tmp_path / "home"
    secret.mkdir()
    home.mkdir()
    (secret / "agent.env").write_text("TOKEN=of-somebody-else\n")
    link = home / name.partition("/")[0]
    link.symlink_to(secret if link.name == "conf" else secret / "agent.env")
    file = EnvironmentFile(f"{home}/{name}", False, ORIGIN)
    assert environment.read_file(file) == {"TOKEN": "of-somebody-else"}, "a link of root's is followed"
    os.chown(link, 12345, 12345, follow_symlinks=False)
    with pytest.raises(UnitError, match="through a link of another user's to a file that is not that user's"):
        environment.read_file(file)
    os.chown(secret / "agent.env", 12345, 12345)
    assert environment.read_file(file) == {"TOKEN": "of-somebody-else"}, "what is theirs is theirs to give"


@pytest.mark.parametrize(("granted", "named"), [("alias", "tree"), ("tree", "alias"), ("alias", "alias")])
def test_no_such_link_is_followed_under_another_name_of_the_tree(tmp_path, granted, named):
    (tmp_path / "tree").mkdir()
    (tmp_path / "alias").symlink_to("tree")
    (tmp_path / "secret").write_text("TOKEN=of-somebody-else\n")
    (tmp_path / "tree" / "agent.env").write_text("OWN=1\n")
    file = EnvironmentFile(f"{tmp_path / named}/agent.env", False, ORIGIN)
    written = (str(tmp_path / granted),)
    assert environment.read_file(file, written=written) == {"OWN": "1"}
    (tmp_path / "tree" / "agent.env").unlink()
    (tmp_path / "tree" / "agent.env").symlink_to(tmp_path / "secret")
    with pytest.raises(UnitError, match="through a link in a tree that the agent writes"):
        environment.read_file(file, written=written)


def test_a_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(UnitError, match="matches no file"):
        environment.read_file(EnvironmentFile(f"{tmp_path}/*.env", False, ORIGIN))
    assert environment.read_file(EnvironmentFile(f"{tmp_path}/*.env", True, ORIGIN)) == {}


# Command lines


def expand(line, **variables):
    (command,) = service(f"[Service]\nExecStart={line}\n").exec_start
    return environment.expand(command, variables)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/bin/a $ONE $TWO ${TWO}", ["/bin/a", "one", "two", "two", "two two"]),
        ("/bin/a '$TWO'", ["/bin/a", "two", "two"]),
        ("/bin/a $NONE ${NONE} x", ["/bin/a", "", "x"]),
        ("/bin/a $EMPTY ${EMPTY}", ["/bin/a", ""]),
        ("/bin/a a$ONE a${ONE}b ${ONE}${TWO}", ["/bin/a", "a$ONE", "aoneb", "onetwo two"]),
        ("/bin/a $$ONE $${ONE} a$$b", ["/bin/a", "$ONE", "${ONE}", "a$b"]),
        ("/bin/a $QUOTED ${QUOTED}", ["/bin/a", "a b", "c", "'a b' c"]),
        ("/bin/a ${ONE", ["/bin/a", "${ONE"]),
        ("/bin/a ${ONE:-x} ${ONE:+${TWO}}", ["/bin/a", "${ONE:-x}", "${ONE:+two two}"]),
        (":/bin/a $ONE ${TWO} $$", ["/bin/a", "$ONE", "${TWO}", "$$"]),
        ("@/bin/a ${ONE} b", ["one", "b"]),
    ],
)
def test_variables_in_a_command_line(line, expected):
    assert expand(line, ONE="one", TWO="two two", EMPTY="", QUOTED="'a b' c") == expected


def test_the_examples_of_the_manual():
    """systemd.service(5), "Command lines"."""
    unit = service(
        "[Service]\nEnvironment=\"ONE=one\" 'TWO=two two'\nExecStart=echo $ONE $TWO ${TWO}\n"
        'ExecStartPre=echo one ; echo "two two"\nExecStartPost=echo / >/dev/null & \\; \\\nls\n'
    )
    assert environment.expand(unit.exec_start[0], unit.environment) == ["echo", "one", "two", "two", "two two"]
    assert [one.words for one in unit.exec_start_pre] == [("echo", "one"), ("echo", "two two")]
    assert unit.exec_start_post[0].words == ("echo", "/", ">/dev/null", "&", ";", "ls")
    other = service(
        "[Service]\nEnvironment=ONE='one' \"TWO='two two' too\" THREE=\nExecStart=/bin/echo ${ONE} ${TWO} ${THREE}\n"
        "ExecStartPost=/bin/echo $ONE $TWO $THREE\n"
    )
    words = environment.expand(other.exec_start[0], other.environment)
    assert words == ["/bin/echo", "one", "'two two' too", ""]
    words = environment.expand(other.exec_start_post[0], other.environment)
    assert words == ["/bin/echo", "one", "two two", "too"]


@given(st.text(st.characters(exclude_characters="\0")))
def test_a_value_in_braces_is_one_word_as_it_is(value):
    assert expand("/bin/a ${A}", A=value) == ["/bin/a", value]
