"""What the measuring scripts share: timing, CPU accounting, statistics, notes.

Leaves to the scripts: what is run and what it is compared with. Invariant: a
process that is started here is ended here, by its own process id, and CPU
time is counted for every process that worked, children included.
"""

import atexit
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
GIB = 1 << 30
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TICKS = os.sysconf("SC_CLK_TCK")
UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": MIB, "gib": GIB,
         "kb": 10 ** 3, "mb": 10 ** 6, "gb": 10 ** 9}


def size(text):
    """Bytes of a size as haul writes it: 587MiB, 4GiB, 587MB, 1000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if not match or match.group(2).lower() not in UNITS:
        raise ValueError(f"{text} is no size: write 587MiB, 4GiB or 587MB")
    return int(float(match.group(1)) * UNITS[match.group(2).lower()])


def quit_with(sentence, code=1):
    """Ends the script with one sentence on standard error."""
    print(f"{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr)
    sys.exit(code)


class Measured:
    """One timed run: wall and CPU seconds, whether it went well, and why not."""

    def __init__(self, seconds, cpu_seconds, error=None, output=""):
        self.seconds = seconds
        self.cpu_seconds = cpu_seconds
        self.error = error
        self.output = output
        # Peaks of memory and descriptors, where somebody watched.
        self.peaks = None


def end(running):
    """Ends processes that were started and not yet waited for."""
    for _, process in running:
        if process.returncode is None:
            process.kill()
            process.wait()


def processes(commands, cwd=None, on_start=None):
    """Starts all commands at once, waits for all, and counts them together.

    Each is a list of words or a pair (words, keywords for Popen). CPU time is
    what wait4 tells, so children that a process waited for are in it. on_start
    is told the processes' ids, in the commands' order.
    """
    log = tempfile.TemporaryFile()
    first_output = tempfile.TemporaryFile()
    started = time.perf_counter()
    running = []
    try:
        for words, *rest in ((c if isinstance(c, tuple) else (c,)) for c in commands):
            keywords = {"stdout": first_output, "stderr": log, "stdin": subprocess.DEVNULL}
            keywords.update(rest[0] if rest else {})
            running.append((words[0], subprocess.Popen(words, cwd=cwd, **keywords)))
    except OSError as error:
        end(running)
        return Measured(0, 0, f"{words[0]}: {error}")
    cpu_seconds, wrong = 0.0, []
    try:
        if on_start:
            on_start([process.pid for _, process in running])
        for name, process in running:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu_seconds += usage.ru_utime + usage.ru_stime
            if process.returncode != 0:
                wrong.append(f"{name} ended with {process.returncode}")
    finally:
        # Whoever interrupts the script wants no process left behind.
        end(running)
    seconds = time.perf_counter() - started
    texts = []
    for file in (first_output, log):
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
        file.close()
    error = None
    if wrong:
        error = "; ".join(wrong) + ": " + " ".join(texts[1].split())[-300:]
    return Measured(seconds, cpu_seconds, error, texts[0])


def in_turn(*steps):
    """Runs steps one after another and adds them up; stops at the first error."""
    total = Measured(0, 0)
    for step in steps:
        done = step()
        total.seconds += done.seconds
        total.cpu_seconds += done.cpu_seconds
        total.output += done.output
        if done.error:
            total.error = done.error
            break
    return total


def read_stat(pid):
    """(parent, session, CPU ticks with waited-for children, start) of a process, or None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[1]), int(fields[3]), sum(int(ticks) for ticks in fields[11:15]),
            int(fields[19]))


class Daemon:
    """A server that stays up over the rounds, in a session of its own."""

    everyone = []

    def __init__(self, words, port=None, **keywords):
        self.log = tempfile.TemporaryFile()
        self.words = words
        keywords.setdefault("stdin", subprocess.DEVNULL)
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log,
                                        start_new_session=True, **keywords)
        Daemon.everyone.append(self)
        if port:
            self.wait_for(port)
        self.quiet_members = len(self.members())

    def output(self):
        """What the daemon said so far, on one line."""
        self.log.seek(0)
        return " ".join(self.log.read().decode(errors="replace").split())

    def wait_for(self, port):
        """Waits until somebody listens on the port, without connecting to it:
        some servers take one connection only."""
        wanted = f":{port:04X}"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.words[0]} ended at once: {self.output()[-300:]}")
            for table in ("/proc/net/tcp", "/proc/net/tcp6"):
                with open(table) as file:
                    for line in file:
                        fields = line.split()
                        if fields[1].endswith(wanted) and fields[3] == "0A":
                            return
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"{self.words[0]} did not listen on port {port} within 10 s")

    def members(self):
        """Every living process of the daemon: its session and its descendants."""
        stats = {int(name): read_stat(name) for name in os.listdir("/proc") if name.isdigit()}
        found = {self.process.pid}
        grown = True
        while grown:
            grown = False
            for pid, stat in stats.items():
                if stat and pid not in found and (stat[0] in found or stat[1] == self.process.pid):
                    found.add(pid)
                    grown = True
        return found

    def cpu_seconds(self):
        """CPU time of the daemon and all its children, ended ones included."""
        stats = (read_stat(pid) for pid in self.members())
        return sum(stat[2] for stat in stats if stat) / TICKS

    def measure(self, run):
        """Runs something that this daemon serves; its share is added."""
        before = self.cpu_seconds()
        done = run()
        # A child that served the connection may end a moment after the client.
        deadline = time.monotonic() + 3
        while len(self.members()) > self.quiet_members and time.monotonic() < deadline:
            time.sleep(0.01)
        done.cpu_seconds += self.cpu_seconds() - before
        if done.error:
            done.error += f" ({os.path.basename(self.words[0])} said: {self.output()[-300:]})"
        return done

    def finish(self):
        """Waits for a server that serves once; its whole CPU time counts."""
        started = time.perf_counter()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        error = None
        if self.process.returncode != 0:
            error = f"{self.words[0]} ended with {self.process.returncode}: {self.output()[-300:]}"
        return Measured(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, error)

    def stop(self):
        """Ends the daemon and its children, by their own ids."""
        members = {pid: read_stat(pid) for pid in self.members()}
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid, seen in members.items():
                now = read_stat(pid)
                # The start time tells the process from a later one of the same id.
                if seen and now and now[3] == seen[3]:
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        pass
            try:
                self.process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                continue
        self.log.close()
        if self in Daemon.everyone:
            Daemon.everyone.remove(self)


def stop_everything():
    """Ends every daemon that is left."""
    for daemon in list(Daemon.everyone):
        daemon.stop()


def scratch(directory, label):
    """A fresh directory that is gone when the script ends, however it ends."""
    path = tempfile.mkdtemp(prefix=f"haul-{label}-", dir=directory)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def clean_on_signals():
    """Makes SIGTERM and SIGHUP an ordinary exit, so that atexit cleans up."""
    atexit.register(stop_everything)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def free_port():
    """A port that the kernel says is free on 127.0.0.1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def random_file(path, length):
    """Writes a file of incompressible bytes, the same for each run."""
    source = random.Random(587)
    with open(path, "wb") as file:
        left = length
        while left > 0:
            block = source.randbytes(min(left, 4 * MIB))
            file.write(block)
            left -= len(block)
        file.flush()
        os.fsync(file.fileno())


def same(left, right):
    """True when both files hold the same bytes."""
    return subprocess.run(["cmp", "-s", left, right], check=False).returncode == 0


def warm(path):
    """Reads a file once, so that its pages are in the page cache."""
    with open(path, "rb", buffering=0) as file:
        block = bytearray(MIB)
        while file.readinto(block):
            pass


def cool(path):
    """Drops a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def remove(path):
    """Removes a file or a tree, if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def find_haul(given):
    """The haul binary: as given, or the release build of this tree."""
    path = given or os.path.join(ROOT, "target", "release", "haul")
    if not os.access(path, os.X_OK):
        quit_with(f"{path} is not there: run cargo build --release, or say --haul PATH", 2)
    return os.path.abspath(path)


def find_limit():
    """The limit reference's binary of this tree."""
    path = os.path.join(ROOT, "target", "release", "limit")
    if not os.access(path, os.X_OK):
        quit_with(f"{path} is not there: run cargo build --release --workspace", 2)
    return path


def spread(values):
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def first_line(words):
    """The first line that a command prints, or None."""
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return lines[0].strip() if lines else None


def file_system(path):
    """The type and options of the file system that a path lies on."""
    best, told = "", "unknown"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            point = fields[4]
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                dash = fields.index("-")
                best, told = point, f"{fields[dash + 1]} ({fields[5]},{fields[dash + 3]})"
    return told


def machine(directories):
    """Notes without which a figure says nothing: the machine and its state."""
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo") as file:
        memory = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal"))

    def setting(name):
        try:
            with open("/proc/sys/" + name.replace(".", "/")) as file:
                return " ".join(file.read().split())
        except OSError:
            return "unknown"

    commit = first_line(["git", "-C", ROOT, "describe", "--always", "--dirty"])
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": commit or "unknown",
        "kernel": platform.release(),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "file_systems": {name: file_system(os.path.realpath(path))
                         for name, path in directories.items()},
        "load_at_start": os.getloadavg()[0],
        "congestion_control": setting("net.ipv4.tcp_congestion_control"),
        "rmem_max": setting("net.core.rmem_max"),
        "tcp_rmem": setting("net.ipv4.tcp_rmem"),
        "tcp_wmem": setting("net.ipv4.tcp_wmem"),
    }


def machine_lines(notes):
    """The machine notes as Markdown list items."""
    lines = [
        f"- {notes['date']}, commit {notes['commit']}, load before the first run "
        f"{notes['load_at_start']:.2f}",
        f"- kernel {notes['kernel']}, {notes['cores']} cores of {notes['cpu']}, "
        f"{notes['memory_bytes'] / GIB:.1f} GiB of memory",
    ]
    lines += [f"- {name}: {told}" for name, told in notes["file_systems"].items()]
    lines.append(f"- the system's congestion control {notes['congestion_control']}, "
                 f"tcp_rmem {notes['tcp_rmem']}, tcp_wmem {notes['tcp_wmem']}, "
                 f"rmem_max {notes['rmem_max']}")
    return lines


def table(head, rows):
    """A Markdown table whose columns line up; the first column is text."""
    cells = [head] + rows
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row):
        first = row[0].ljust(widths[0])
        return "| " + " | ".join([first] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]) + " |"

    rule = "| " + "-" * widths[0] + " | " + " | ".join("-" * (w - 1) + ":" for w in widths[1:]) + " |"
    return [line(head), rule] + [line(row) for row in rows]


def write_results(path, markdown, data):
    """Writes NAME.md and NAME.json."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".md", "w") as file:
        file.write("\n".join(markdown) + "\n")
    with open(path + ".json", "w") as file:
        json.dump(data, file, indent=2)
        file.write("\n")
    print(f"written: {path}.md and {path}.json", file=sys.stderr)
