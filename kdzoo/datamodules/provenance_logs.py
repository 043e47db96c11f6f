"""Provenance logs: what strace, StreamSpot and DARPA's CDM (JSON) say of processes, files and sockets, as a graph.

Nothing in a log is run or trusted: a line that does not parse is counted in `bad`, with the first of them kept, and
left out. A call that failed is no event.
"""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from posixpath import normpath
from typing import Any

TYPES = ("process", "file", "socket")
EVENTS = ("read", "write", "execute", "fork", "connect", "remove", "other")

STRACE = re.compile(r"(?P<pid>\d+)\s+(?P<call>\w+)\((?P<arguments>.*)\)\s+=\s+(?P<result>-?\d+|0x[0-9a-f]+|\?)")
NO_CALL = re.compile(r"\d+\s+(\+\+\+|---|\?\?\?\? )")
UNFINISHED = re.compile(r"(\d+)\s+(.*) <unfinished \.\.\.>$")
RESUMED = re.compile(r"(\d+)\s+<\.\.\. \w+ resumed>(.*)$")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
FAMILY = re.compile(r"sa_family=AF_(INET6?|UNIX)")
PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
ADDRESS = re.compile(r'(?:inet_addr\(|inet_pton\(AF_INET6, |sun_path=@?)"([^"]*)"')
FOLDER = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")
CHANGES = (
    "mkdir",
    "mkdirat",
    "chmod",
    "fchmodat",
    "chown",
    "fchownat",
    "truncate",
    "utimensat",
    "symlink",
    "symlinkat",
)


@dataclass
class Provenance:
    """A provenance graph that grows event by event.

    Attributes:
        types: Of each node, an index into `TYPES`.
        names: Of each node: command, path or address.
        events: (from, to, kind) in the order of the log, kind an index into `EVENTS`; from and to are nodes.
        bad: How many lines did not parse.
        first_bad: The first of them.
        folders: Where a process is, as far as the log says: node -> path.
    """

    types: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    events: list[tuple[int, int, int]] = field(default_factory=list)
    bad: int = 0
    first_bad: str = ""
    folders: dict[int, str] = field(default_factory=dict)
    _known: dict[tuple[str, str], int] = field(default_factory=dict)

    def node(self, kind: str, key: str, name: str) -> int:
        """The node of this type and key, made if it is new."""
        if (kind, key) not in self._known:
            self._known[kind, key] = len(self.types)
            self.types.append(TYPES.index(kind))
            self.names.append(name)
        return self._known[kind, key]

    def called(self, words: Collection[str], *kinds: str) -> list[int]:
        """The nodes, of `kinds` if given, whose key (process number, path, address, uuid) or name is one of `words`."""
        wanted = kinds or TYPES
        return [
            node
            for (kind, key), node in self._known.items()
            if kind in wanted and (key in words or self.names[node] in words)
        ]

    def event(self, source: int, target: int, kind: str) -> None:
        """Add an event."""
        self.events.append((source, target, EVENTS.index(kind)))

    def complain(self, line: str) -> None:
        """Count a line that does not parse."""
        self.bad += 1
        self.first_bad = self.first_bad or line.strip()[:200]


def read_strace(lines: Iterable[str]) -> Provenance:
    """Read the output of `strace -f -y -o FILE -e trace=process,file,network`."""
    graph, begun = Provenance(), dict[str, str]()
    for line in lines:
        line = line.rstrip("\n")
        if not line.strip() or NO_CALL.match(line):
            continue
        if match := UNFINISHED.match(line):
            begun[match[1]] = match[2]
            continue
        if match := RESUMED.match(line):
            line = f"{match[1]} {begun.pop(match[1], '')}{match[2]}"
        found = STRACE.match(line)
        if not found:
            graph.complain(line)
        elif not found["result"].startswith("-"):
            _call(graph, found["pid"], found["call"], found["arguments"], found["result"])
    return graph


def _call(graph: Provenance, pid: str, call: str, arguments: str, result: str) -> None:
    process = graph.node("process", pid, f"process {pid}")
    if call in ("fork", "vfork", "clone", "clone3") and result.isdigit():
        child = graph.node("process", result, graph.names[process])
        if graph.names[child] == f"process {result}":  # it was at work before its parent was told
            graph.names[child] = graph.names[process]
        graph.event(process, child, "fork")
        if process in graph.folders:
            graph.folders.setdefault(child, graph.folders[process])
        return
    if call == "connect" and (family := FAMILY.search(arguments)):
        address, port = ADDRESS.search(arguments), PORT.search(arguments)
        name = (address[1] if address else family[1]) + (f":{port[1]}" if port else "")
        graph.event(process, graph.node("socket", name, name), "connect")
        return
    path = QUOTED.search(arguments)
    if not path:
        return
    name, folder = path[1], FOLDER.match(arguments)
    if folder and arguments.startswith("AT_FDCWD"):
        graph.folders[process] = folder[1]
    if not name.startswith("/") and (base := folder[1] if folder else graph.folders.get(process)):
        name = f"{base.rstrip('/')}/{name}"
    name = normpath(name) if name else name
    if call == "chdir":
        graph.folders[process] = name
    if call in ("execve", "execveat"):
        graph.event(graph.node("file", name, name), process, "execute")
        graph.names[process] = name.rpartition("/")[2]
    elif call in ("open", "openat", "creat"):
        file = graph.node("file", name, name)
        written = call == "creat" or "O_WRONLY" in arguments or "O_RDWR" in arguments
        graph.event(*((process, file, "write") if written else (file, process, "read")))
    elif call in ("unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2"):
        graph.event(process, graph.node("file", name, name), "remove")
    elif call in CHANGES:
        graph.event(process, graph.node("file", name, name), "other")


STREAMSPOT = {"a": "process", "b": "process", "c": "file", "d": "file", "e": "file", "f": "socket", "g": "socket"}


def read_streamspot(lines: Iterable[str]) -> dict[int, Provenance]:
    """Read StreamSpot's file of edges, number of the graph -> graph.

    A line has six fields, split by tabs: source, its type, destination, its type, type of the edge, the graph's number.
    The types are letters: of nodes a and b are processes and threads, c to e kinds of files, all others sockets.
    Lines that do not parse are counted in the graph that the line before is of.
    """
    graphs: dict[int, Provenance] = {}
    graph = Provenance()
    for line in lines:
        if not line.strip():
            continue
        fields = line.rstrip("\n").split("\t")
        if len(fields) != 6 or not fields[5].isdigit() or not all(len(each) == 1 for each in (fields[1], fields[3])):
            graph.complain(line)
            continue
        number = int(fields[5])
        if number not in graphs:  # what was wrong before the first graph is counted in it
            graphs[number] = graph if not graphs else Provenance()
        graph = graphs[number]
        ends = [
            graph.node(STREAMSPOT.get(letter, "socket"), key, f"{letter} {key}")
            for key, letter in (fields[0:2], fields[2:4])
        ]
        graph.event(ends[0], ends[1], "other")
    return graphs


CDM_NODES = {"Subject": "process", "FileObject": "file", "NetFlowObject": "socket", "UnnamedPipeObject": "file"}
CDM_EVENTS = {
    "EVENT_READ": "read",
    "EVENT_RECVFROM": "read",
    "EVENT_RECVMSG": "read",
    "EVENT_LOADLIBRARY": "read",
    "EVENT_MMAP": "read",
    "EVENT_WRITE": "write",
    "EVENT_SENDTO": "write",
    "EVENT_SENDMSG": "write",
    "EVENT_EXECUTE": "execute",
    "EVENT_FORK": "fork",
    "EVENT_CLONE": "fork",
    "EVENT_CONNECT": "connect",
    "EVENT_UNLINK": "remove",
    "EVENT_RENAME": "remove",
}
TOWARDS_PROCESS = ("read", "execute")


def read_cdm(lines: Iterable[str]) -> Provenance:
    """Read DARPA Transparent Computing's CDM in JSON, one record a line, as engagement 3 has it.

    Nodes are subjects and objects, by their uuid, edges the events between them; what an event names and no record
    describes is left out, as are records of other kinds. Of the events of one kind between the same two nodes, the
    first is kept.
    """
    graph, seen = Provenance(), set[tuple[int, int, int]]()
    for line in lines:
        if not line.strip():
            continue
        try:
            ((kind, record),) = json.loads(line)["datum"].items()
            kind = kind.rpartition(".")[2]
            if kind in CDM_NODES:
                graph.node(CDM_NODES[kind], record["uuid"], _cdm_name(kind, record))
            elif kind == "Event":
                event = CDM_EVENTS.get(record["type"], "other")
                ends = [_uuid(record.get(key)) for key in ("subject", "predicateObject")]
                nodes = [next((n for (_, key), n in _of(graph, end)), None) for end in ends]
                if nodes[0] is None or nodes[1] is None:
                    continue
                source, target = nodes if event not in TOWARDS_PROCESS else nodes[::-1]
                entry = (int(source or 0), int(target or 0), EVENTS.index(event))
                if entry not in seen:
                    seen.add(entry)
                    graph.events.append(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            graph.complain(line)
    return graph


def _of(graph: Provenance, uuid: str | None) -> list[tuple[tuple[str, str], int]]:
    """The node with this uuid, whatever its type: none or one."""
    keys = ((kind, uuid or "") for kind in TYPES)
    return [(key, graph._known[key]) for key in keys if key in graph._known]


def _uuid(value: Any) -> str | None:
    return next(iter(value.values())) if isinstance(value, dict) else value


def _cdm_name(kind: str, record: dict[str, Any]) -> str:
    if kind == "NetFlowObject":
        return f"{record.get('remoteAddress')}:{record.get('remotePort')}"
    properties = (record.get("properties") or (record.get("baseObject") or {}).get("properties") or {}).get("map") or {}
    command = record.get("cmdLine")
    return str(_uuid(command) or properties.get("path") or properties.get("name") or record["uuid"])
