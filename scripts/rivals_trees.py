"""The tools that haul is compared with on whole trees, each as a row.

Leaves to compare-trees: the rounds, the checking and the tables; to rivals:
what a row is, and how the servers start. Invariant: every rival moves the same
tree to a missing target, over 127.0.0.1 unless its note says otherwise, and a
row says how much of a tree it keeps, which its target is then held against.
"""

import getpass
import os
import shlex

import trees
from measure import Daemon, MIB, free_port, processes
from rivals import Cp, Haul, HaulPlaced, HaulServe, Rival, Rsync, Scp, Setting, TarSocat
from watch import Watch


class TreeSetting(Setting):
    """What the rows of one tree share."""

    def __init__(self, tree, target_dir, scratch, durable, haul):
        # With a slash at its end it is its contents, for haul as for rsync.
        super().__init__(tree.path + "/", target_dir, scratch, tree.bytes, durable, haul)
        self.tree = tree
        self.target = os.path.join(target_dir, "tree")

    def prepare(self):
        """Before a run: the target is missing."""
        trees.remove(self.target)

    def check(self, keeps):
        """After a measured run: what is wrong with the target, or None."""
        return trees.difference(self.tree.path, self.target, keeps)

    def clear(self):
        """After the check."""
        trees.remove(self.target)


class StandingSetting(TreeSetting):
    """The target is a copy already, made by cp, and no run may touch it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        trees.copy_of(self.target, self.tree.path)
        self.before = trees.fingerprint(self.target)
        self.wrong = trees.difference(self.tree.path, self.target, "exact")

    def prepare(self):
        pass

    def check(self, keeps):
        if self.wrong:
            return self.wrong
        if trees.fingerprint(self.target) != self.before:
            return "a run with nothing to do changed the target"
        return None

    def clear(self):
        pass


class TreeRow:
    """What a row on trees has beside a row on a file."""

    # "contents", "metadata" (times to the second) or "exact".
    keeps = "exact"
    # The row that this one's figures are set against, where it is not the
    # workload's.
    base = None

    def cannot(self):
        """Why this tree is none for this row, or None."""
        return None


class TreeCp(TreeRow, Cp):
    note = "no network, no checks"


class TreeHaul(TreeRow, Haul):
    pass


class TreeHaulPlaced(TreeRow, HaulPlaced):
    pass


class TreeHaulServe(TreeRow, HaulServe):
    note = "a push to a server, the two ends in two processes, sealed"

    def copy(self, on_start=None):
        """One push, timed."""
        s = self.setting
        return self.daemon.measure(
            lambda: processes([[s.haul, "copy", "-q", "--token-file", self.token,
                                s.source, self.address]], on_start=on_start))

    def run(self):
        return self.copy()


class TreeTarSocat(TreeRow, TarSocat):
    keeps = "metadata"

    def __init__(self, setting):
        super().__init__(setting)
        # Either of these makes every header larger, so only where there is a need.
        self.options = ""
        if setting.tree.attributes:
            self.options = " --acls --xattrs --xattrs-include='*'"
        self.note = (f"tar -c{self.options} | socat → socat | tar -x, four processes, one "
                     "direction; ends with the receiving tar")

    def run(self):
        s = self.setting
        port = free_port()
        source, into = map(shlex.quote, (s.source, s.target))
        options = f"--numeric-owner{self.options}"
        receiver = Daemon(["sh", "-c",
                           f"mkdir {into} && socat -u -b {MIB} TCP-LISTEN:{port},bind=127.0.0.1"
                           f" STDOUT | tar -C {into} {options} -xpf -"], port)
        send = [["sh", "-c", f"tar -C {source} {options} -cf - ."
                             f" | socat -u -b {MIB} STDIN TCP:127.0.0.1:{port}"]]
        try:
            return s.landed(lambda: processes(send), receiver.finish)
        finally:
            receiver.stop()


class TreeRsync(TreeRow, Rsync):
    """fsync for each file is not asked of it: one sync behind it is cheaper."""

    def __init__(self, setting):
        super().__init__(setting)
        self.flags = "-aHAX" if setting.tree.needs_options() else "-a"
        self.note = f"rsync {self.flags} --whole-file --numeric-ids to a daemon"

    def words(self, target):
        """The command, to that target."""
        return ["rsync", self.flags, "--whole-file", "--numeric-ids", self.setting.source,
                target + "/"]

    def run(self):
        return self.setting.landed(
            lambda: self.daemon.measure(lambda: processes([self.words(self.url)])))


class Rclone(TreeRow, Rival):
    name = "rclone, local"
    note = "rclone copy --links on its defaults; no network"
    needs = {"rclone": "rclone"}
    version = ["rclone", "version"]
    keeps = "contents"

    def run(self):
        s = self.setting
        # A configuration of the user's own would make the row another one.
        own = {"env": dict(os.environ, RCLONE_CONFIG=os.path.join(s.scratch, "rclone.conf"))}
        return s.landed(lambda: processes(
            [(["rclone", "copy", "--links", "--create-empty-src-dirs", s.source, s.target], own)]))


class TreeScp(TreeRow, Scp):
    name = "scp -r"
    note = ("scp -r -p, encrypted: not the same work; a private sshd with keys made for the run, "
            "so that nothing asks for a password")
    keeps = "contents"

    def cannot(self):
        if self.setting.tree.links:
            return "scp copies what a symbolic link points to, not the link"
        return None

    def run(self):
        s = self.setting
        copy = [self.words + ["-r", "-p", s.tree.path, f"{getpass.getuser()}@127.0.0.1:{s.target}"]]
        return s.landed(lambda: self.daemon.measure(lambda: processes(copy)))


class RsyncAgain(TreeRsync):
    """The second run over a daemon."""

    def __init__(self, setting):
        super().__init__(setting)
        self.flags = "-aHAX"
        self.note = "rsync -aHAX --whole-file --numeric-ids to a daemon"

    def run(self):
        return self.daemon.measure(lambda: processes([self.words(self.url)]))


class RsyncLocal(RsyncAgain):
    """The second run within one machine."""

    name = "rsync, local"

    def __init__(self, setting):
        super().__init__(setting)
        self.note = "rsync -aHAX --whole-file --numeric-ids; no network"

    def start(self):
        pass

    def run(self):
        return processes([self.words(self.setting.target)])


class WatchedHaul(TreeHaul):
    """haul in one process, with its memory and descriptors looked at."""

    def run(self):
        s = self.setting
        watch = Watch()
        done = processes([[s.haul, "copy", "-q", s.source, s.target]],
                         on_start=lambda pids: watch.add("both ends", pids[0]))
        done.peaks = watch.stop()
        return done


class WatchedHaulServe(TreeHaulServe):
    """The same with a server of its own for each run: what one run left in
    its memory would be counted for the next."""

    def start(self):
        pass

    def run(self):
        super().start()
        watch = Watch()
        try:
            watch.add("serve", self.daemon.process.pid)
            done = self.copy(lambda pids: watch.add("copy", pids[0]))
            done.peaks = watch.stop()
            return done
        finally:
            self.daemon.stop()


def tree_rivals(setting):
    """Every row that copies a tree to a missing target, in the table's order."""
    # What a disk has not been asked to flush, haul has a lesser level for.
    placed = [] if setting.durable or setting.in_memory else [TreeHaulPlaced]
    return [kind(setting) for kind in
            (TreeTarSocat, TreeCp, TreeHaul, *placed, TreeHaulServe, TreeRsync, Rclone, TreeScp)]


def unchanged_rivals(setting):
    """Every row that finds nothing to do."""
    return [kind(setting) for kind in (RsyncAgain, RsyncLocal, TreeHaul, TreeHaulServe)]


def named(row, name, base, note=None):
    """The row under another name, set against another row."""
    row.name, row.base = name, base
    if note:
        row.note = note
    return row
