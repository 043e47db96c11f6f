"""Provenance logs: every event, and lines that do not parse."""

import json

import pytest

from kdzoo.datamodules.provenance_logs import EVENTS, TYPES, Provenance, read_cdm, read_strace, read_streamspot


def said(graph: Provenance) -> list[tuple[str, str, str]]:
    return [(graph.names[a], EVENTS[kind], graph.names[b]) for a, b, kind in graph.events]


STRACE = """\
10 execve("/bin/sh", ["sh", "-c", "x"], 0x7f /* 9 vars */) = 0
10 openat(AT_FDCWD</home/user>, "notes.txt", O_RDONLY|O_CLOEXEC) = 3</home/user/notes.txt>
10 openat(AT_FDCWD</home/user>, "missing", O_RDONLY) = -1 ENOENT (No such file or directory)
10 vfork( <unfinished ...>
11 execve("/usr/bin/curl", ["curl"], 0x7f /* 9 vars */) = 0
10 <... vfork resumed>) = 11
11 connect(5<TCP:[1]>, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
11 openat(AT_FDCWD</home/user>, "/tmp/a \\"b\\"", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 4</tmp/a>
this is no call
11 unlinkat(AT_FDCWD</home/user>, "notes.txt", 0) = 0
--- also no call
10 --- SIGCHLD {si_signo=SIGCHLD} ---
11 +++ exited with 0 +++
"""


def test_strace():
    graph = read_strace(STRACE.splitlines(keepends=True))
    assert said(graph) == [
        ("/bin/sh", "execute", "sh"),
        ("/home/user/notes.txt", "read", "sh"),
        ("/usr/bin/curl", "execute", "curl"),
        ("sh", "fork", "curl"),
        ("curl", "connect", "127.0.0.1:80"),
        ("curl", "write", '/tmp/a \\"b\\"'),
        ("curl", "remove", "/home/user/notes.txt"),
    ]
    assert (graph.bad, graph.first_bad) == (2, "this is no call")
    assert [TYPES[kind] for kind in graph.types].count("process") == 2


def test_where_a_process_is_and_what_it_is_called():
    """Relative paths are those of the process's folder, a child that worked before the fork returned has its name."""
    log = """\
10 execve("/bin/sh", ["sh"], 0x7f /* 9 vars */) = 0
10 mkdir("unknown", 0777) = 0
10 chdir("/home/user") = 0
10 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD <unfinished ...>
11 openat(AT_FDCWD</home/user>, "./a/../b", O_RDONLY) = 3</home/user/b>
10 <... clone resumed>) = 11
11 chdir("sub") = 0
11 chmod("c", 0755) = 0
10 unlink("d") = 0
"""
    graph = read_strace(log.splitlines(keepends=True))
    assert said(graph) == [
        ("/bin/sh", "execute", "sh"),
        ("sh", "other", "unknown"),
        ("/home/user/b", "read", "sh"),
        ("sh", "fork", "sh"),
        ("sh", "other", "/home/user/sub/c"),
        ("sh", "remove", "/home/user/d"),
    ]
    assert graph.bad == 0
    assert [graph.names[node] for node in graph.called({"11"}, "process")] == ["sh"]
    assert [graph.names[node] for node in graph.called({"sh", "/home/user/b"}, "file")] == ["/home/user/b"]


def test_streamspot():
    lines = ["1\ta\t2\tc\tp\t7\n", "1\ta\t3\th\tq\t7\n", "broken\n", "1\ta\t2\tc\tp\tx\n", "1\ta\t9\te\tp\t8\n"]
    graphs = read_streamspot(lines)
    assert list(graphs) == [7, 8]
    assert [TYPES[kind] for kind in graphs[7].types] == ["process", "file", "socket"]
    assert said(graphs[8]) == [("a 1", "other", "e 9")]
    assert (graphs[7].bad, graphs[8].bad) == (2, 0)


def record(kind, **fields):
    return json.dumps({"datum": {f"com.bbn.tc.schema.avro.cdm18.{kind}": fields}})


def test_cdm():
    event = {"subject": {"com.bbn.tc.schema.avro.cdm18.UUID": "p"}, "predicateObject": {"UUID": "f"}}
    lines = [
        record("Subject", uuid="p", cmdLine={"string": "sshd -D"}),
        record("FileObject", uuid="f", baseObject={"properties": {"map": {"path": "/etc/passwd"}}}),
        record("NetFlowObject", uuid="n", remoteAddress="10.0.0.1", remotePort=443),
        record("Event", type="EVENT_READ", **event),
        record("Event", type="EVENT_READ", **event),
        record("Event", type="EVENT_SENDTO", subject={"UUID": "p"}, predicateObject={"UUID": "n"}),
        record("Event", type="EVENT_READ", subject={"UUID": "p"}, predicateObject={"UUID": "unknown"}),
        record("Event", type="EVENT_EXIT", subject={"UUID": "p"}, predicateObject=None),
        record("Host", uuid="h"),
        '{"datum": 3}',
        "{",
        record("Subject"),
    ]
    graph = read_cdm(lines)
    assert said(graph) == [("/etc/passwd", "read", "sshd -D"), ("sshd -D", "write", "10.0.0.1:443")]
    assert (graph.bad, graph.first_bad) == (3, '{"datum": 3}')


@pytest.mark.parametrize("read", [read_strace, read_cdm])
def test_an_empty_log_is_an_empty_graph(read):
    graph = read(["\n", ""])
    assert (graph.types, graph.events, graph.bad) == ([], [], 0)
