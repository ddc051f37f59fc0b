"""The tools that haul is compared with, each as a row that knows how to run.

Leaves to compare: the rounds, the checking and the tables. Invariant: every
rival moves the same file to a fresh target on this machine over 127.0.0.1
(cp excepted, which has no network), on its own defaults unless its note says
otherwise, and all of its processes are counted.
"""

import getpass
import os
import shlex
import shutil
import subprocess

from measure import Daemon, MIB, file_system, first_line, free_port, in_turn, processes


class Setting:
    """What all rivals share: the file, where it goes, and what is asked for."""

    def __init__(self, source, target_dir, scratch, length, durable, haul):
        self.source = source
        self.source_dir, self.name = os.path.split(source)
        self.target = os.path.join(target_dir, "target.bin")
        self.target_dir = target_dir
        self.scratch = scratch
        self.length = length
        self.durable = durable
        self.in_memory = file_system(os.path.realpath(target_dir)).startswith("tmpfs")
        self.haul = haul

    def scratch_file(self, name, text):
        """Writes a small configuration file and returns its path."""
        path = os.path.join(self.scratch, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def sync(self):
        """Makes the target durable, for rivals that cannot themselves."""
        return processes([["sync", "-f", self.target]])

    def landed(self, *steps):
        """Runs the steps, and sync -f behind them where durability is asked for."""
        return in_turn(*steps, *([self.sync] if self.durable else []))


class Rival:
    """One row. `needs` maps commands to their Debian packages."""

    name = ""
    note = ""
    needs = {}
    version = []
    lands = True

    def __init__(self, setting):
        self.setting = setting
        self.daemon = None

    def missing(self):
        """Packages whose commands are not there."""
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        return sorted({package for command, package in self.needs.items()
                       if not shutil.which(command, path=path)})

    def start(self):
        """Starts what stays up over the rounds."""

    def run(self):
        """Moves the file once and returns a Measured."""
        raise NotImplementedError

    def stop(self):
        """Ends what start began."""
        if self.daemon:
            self.daemon.stop()

    def told_version(self):
        """Name and version as the tool tells it."""
        return first_line(self.version) if self.version else None


class Cp(Rival):
    name = "cp -a"
    note = "no network, no checks; the scale of the ratios"
    needs = {"cp": "coreutils"}
    version = ["cp", "--version"]

    def run(self):
        s = self.setting
        return s.landed(lambda: processes([["cp", "-a", s.source, s.target]]))


class Haul(Rival):
    name = "haul copy"
    note = "both ends in one process over loopback, checks on, sealed"
    options = []

    def __init__(self, setting):
        super().__init__(setting)
        self.version = [setting.haul, "--version"]

    def run(self):
        s = self.setting
        # A file system that shares blocks would have nothing moved.
        return processes([[s.haul, "copy", "-q", "--reflink", "never", *self.options,
                           s.source, s.target]])


class HaulPlaced(Haul):
    name = "haul copy --no-fsync"
    note = "both ends in one process over loopback, checks on, not durable, as the others"
    options = ["--no-fsync"]


class HaulServe(Haul):
    name = "haul serve + copy"
    note = "a push to a server, the two ends in two processes"

    def start(self):
        s = self.setting
        port = free_port()
        self.address = f"haul://127.0.0.1:{port}/{os.path.basename(s.target)}"
        self.token = os.path.join(s.scratch, "token")
        self.daemon = Daemon([s.haul, "serve", "--root", s.target_dir,
                              "--listen", f"127.0.0.1:{port}", "--token-file", self.token], port)

    def run(self):
        s = self.setting
        options = [] if s.durable or s.in_memory else ["--no-fsync"]
        return self.daemon.measure(
            lambda: processes([[s.haul, "copy", "-q", "--token-file", self.token, *options,
                                s.source, self.address]]))


class Rsync(Rival):
    name = "rsync daemon"
    note = "rsync -a --whole-file; --fsync where durability is asked for"
    needs = {"rsync": "rsync"}
    version = ["rsync", "--version"]

    def start(self):
        s = self.setting
        port = free_port()
        is_root = os.getuid() == 0
        identity = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if is_root else ""
        # Without a root of its own the daemon takes the slash from what links say.
        chroot = "yes" if is_root else "no"
        config = s.scratch_file("rsyncd.conf", (
            f"port = {port}\naddress = 127.0.0.1\nuse chroot = {chroot}\n{identity}"
            f"pid file = {s.scratch}/rsyncd.pid\n"
            # Symbolic links stay what they are, and no name is looked up for an owner.
            "munge symlinks = no\nnumeric ids = yes\n"
            f"[target]\npath = {s.target_dir}\nread only = no\n"))
        self.url = f"rsync://127.0.0.1:{port}/target/{os.path.basename(s.target)}"
        self.daemon = Daemon(["rsync", "--daemon", "--no-detach", f"--config={config}"], port)

    def run(self):
        s = self.setting
        durable = ["--fsync"] if s.durable else []
        return self.daemon.measure(
            lambda: processes([["rsync", "-a", "--whole-file", *durable, s.source, self.url]]))


class GridFtp(Rival):
    name = "GridFTP, 4 streams"
    note = "globus-url-copy -fast -p 4 without security, 1 MiB blocks"
    needs = {"globus-url-copy": "globus-gass-copy-progs",
             "globus-gridftp-server": "globus-gridftp-server-progs"}
    version = ["globus-gridftp-server", "--version"]

    def start(self):
        s = self.setting
        port = free_port()
        self.url = f"ftp://127.0.0.1:{port}{s.target}"
        user = getpass.getuser()
        if os.getuid() == 0:
            # Anybody on this machine can log in: never as root.
            user = "nobody"
            shutil.chown(s.target_dir, user)
        self.daemon = Daemon(
            ["globus-gridftp-server", "-control-interface", "127.0.0.1", "-p", str(port),
             "-data-interface", "127.0.0.1", "-aa", "-anonymous-user", user,
             "-anonymous-names-allowed", "*", "-home-dir", s.target_dir,
             "-log-level", "ERROR"], port)

    streams = 4

    def run(self):
        s = self.setting
        parallel = ["-p", str(self.streams)] if self.streams > 1 else []
        copy = [["globus-url-copy", "-fast", *parallel, "-bs", str(MIB), "-nodcau",
                 f"file://{s.source}", self.url]]
        return s.landed(lambda: self.daemon.measure(lambda: processes(copy)))


class GridFtpSingle(GridFtp):
    """Several streams lose to one within one machine, for GridFTP as for haul."""

    name = "GridFTP, 1 stream"
    note = "the same without -p: what is fastest within one machine"
    streams = 1


class NginxCurl(Rival):
    name = "nginx + curl"
    note = "a download with sendfile on; curl writes the file"
    needs = {"nginx": "nginx-light", "curl": "curl"}
    version = ["nginx", "-v"]

    def start(self):
        s = self.setting
        port = free_port()
        user = f"user {getpass.getuser()};\n" if os.getuid() == 0 else ""
        places = "".join(f"  {kind}_temp_path {s.scratch}/nginx-{kind};\n" for kind in
                         ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config = s.scratch_file("nginx.conf", (
            f"daemon off;\nmaster_process on;\nworker_processes 1;\n{user}"
            f"pid {s.scratch}/nginx.pid;\nerror_log {s.scratch}/nginx.log;\n"
            f"events {{ worker_connections 64; }}\nhttp {{\n  access_log off;\n{places}"
            f"  sendfile on;\n  server {{ listen 127.0.0.1:{port}; root {s.source_dir}; }}\n}}\n"))
        self.url = f"http://127.0.0.1:{port}/{s.name}"
        nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        self.version = [nginx, "-v"]
        self.daemon = Daemon([nginx, "-c", config, "-e", f"{s.scratch}/nginx.log"], port)

    def run(self):
        s = self.setting
        fetch = [["curl", "-sS", "--fail", "-o", s.target, self.url]]
        return s.landed(lambda: self.daemon.measure(lambda: processes(fetch)))


class TarSocat(Rival):
    name = "tar through socat"
    note = "tar | socat → socat | tar, four processes"
    needs = {"tar": "tar", "socat": "socat"}
    version = ["socat", "-V"]

    def told_version(self):
        tar = first_line(["tar", "--version"])
        done = subprocess.run(self.version, stdout=subprocess.PIPE, check=False)
        lines = done.stdout.decode(errors="replace").splitlines()
        return f"{tar}, {lines[1] if len(lines) > 1 else 'socat'}"

    def run(self):
        s = self.setting
        port = free_port()
        directory, name, into = map(shlex.quote, (s.source_dir, s.name, s.target_dir))
        receiver = Daemon(["sh", "-c",
                           f"socat -u -b {MIB} TCP-LISTEN:{port},bind=127.0.0.1 STDOUT"
                           f" | tar -C {into} -xf - --transform 's|.*|target.bin|'"], port)
        send = [["sh", "-c", f"tar -C {directory} -cf - {name}"
                             f" | socat -u -b {MIB} STDIN TCP:127.0.0.1:{port}"]]
        try:
            return s.landed(lambda: processes(send), receiver.finish)
        finally:
            receiver.stop()


class Scp(Rival):
    name = "scp"
    note = "encrypted: not the same work; a private sshd with keys made for the run"
    needs = {"scp": "openssh-client", "sshd": "openssh-server", "ssh-keygen": "openssh-client"}
    version = ["ssh", "-V"]

    def start(self):
        s = self.setting
        port = free_port()
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f",
                            f"{s.scratch}/{key}_key"], check=True)
        shutil.copy(f"{s.scratch}/user_key.pub", f"{s.scratch}/authorized_keys")
        config = s.scratch_file("sshd_config", (
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {s.scratch}/host_key\n"
            f"AuthorizedKeysFile {s.scratch}/authorized_keys\nStrictModes no\n"
            f"PidFile {s.scratch}/sshd.pid\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin yes\nSubsystem sftp internal-sftp\n"))
        if os.getuid() == 0:
            # sshd wants this directory for its separated half.
            os.makedirs("/run/sshd", exist_ok=True)
        sshd = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
        self.words = ["scp", "-q", "-P", str(port), "-i", f"{s.scratch}/user_key",
                      "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                      "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"]
        self.daemon = Daemon([sshd, "-D", "-e", "-f", config], port)

    def run(self):
        s = self.setting
        copy = [self.words + [s.source, f"{getpass.getuser()}@127.0.0.1:{s.target}"]]
        return s.landed(lambda: self.daemon.measure(lambda: processes(copy)))


class Iperf(Rival):
    name = "iperf3, 1 stream"
    note = "memory to memory: no file is read or written"
    needs = {"iperf3": "iperf3"}
    version = ["iperf3", "--version"]
    lands = False
    streams = 1

    def run(self):
        port = free_port()
        server = Daemon(["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", str(port)], port)
        try:
            client = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-P", str(self.streams),
                      "-n", str(self.setting.length)]
            done = processes([client])
            ended = server.finish()
            done.cpu_seconds += ended.cpu_seconds
            done.error = done.error or ended.error
            return done
        finally:
            server.stop()


class IperfFour(Iperf):
    name = "iperf3, 4 streams"
    streams = 4


def rivals(setting):
    """Every row, in the order of the table."""
    # On tmpfs an fsync costs nothing, so haul has no lesser level to ask for.
    placed = not setting.durable and not setting.in_memory
    ours = [HaulPlaced, HaulServe] if placed else [Haul, HaulServe]
    return [kind(setting) for kind in
            (Cp, *ours, Rsync, GridFtp, GridFtpSingle, NginxCurl, TarSocat, Scp, Iperf,
             IperfFour)]
