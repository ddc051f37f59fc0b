"""Trees to copy: how they are made, looked at, compared and removed.

Leaves to compare-trees and lab: when. Invariant: a tree that is made here is
the same for each run of the same parameters, and a target counts as good only
where tools that are not haul find nothing that differs.
"""

import hashlib
import os
import random
import stat
import subprocess

from measure import MIB, quit_with


class Tree:
    """A source directory, and what must be known of it to copy it fairly."""

    def __init__(self, path):
        self.path = path
        self.files = self.directories = self.bytes = self.entries = 0
        self.links = self.special = self.hard_links = self.attributes = False
        self.look()

    def look(self):
        """Counts, and finds out what only some options of the rivals keep."""
        for entry in walk(self.path):
            told = entry.stat(follow_symlinks=False)
            self.entries += 1
            if stat.S_ISDIR(told.st_mode):
                self.directories += 1
            elif stat.S_ISREG(told.st_mode):
                self.files += 1
                self.bytes += told.st_size
                self.hard_links |= told.st_nlink > 1
            elif stat.S_ISLNK(told.st_mode):
                self.links = True
            else:
                self.special = True
            if not self.attributes:
                self.attributes = bool(os.listxattr(entry.path, follow_symlinks=False))

    def needs_options(self):
        """True where mode, owner and time are not all that there is to keep."""
        return self.hard_links or self.attributes

    def notes(self):
        """What the results say of it."""
        return {"files": self.files, "directories": self.directories, "entries": self.entries,
                "bytes": self.bytes, "symbolic_links": self.links, "hard_links": self.hard_links,
                "extended_attributes": self.attributes}


def walk(path):
    """Every entry below a directory, as os.scandir tells it."""
    waiting = [path]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def make(path, files, file_bytes, directories):
    """Makes `files` files of incompressible bytes, spread over `directories`
    directories, or in `path` itself where these are none."""
    numbers = random.Random(587)
    # Drawn from one block at places of their own, so that a million files do
    # not wait for a million times so many random bytes.
    block = numbers.randbytes(max(4 * MIB, 2 * file_bytes))
    os.mkdir(path)
    places = [os.path.join(path, f"{number:05}") for number in range(directories)] or [path]
    for place in places if directories else ():
        os.mkdir(place)
    for number in range(files):
        start = numbers.randrange(len(block) - file_bytes)
        with open(os.path.join(places[number % len(places)], f"{number:08}"), "wb",
                  buffering=0) as file:
            file.write(block[start:start + file_bytes])
    os.sync()
    return Tree(path)


def copy_of(path, source):
    """A tree copied from one that is there, of that one's file system only."""
    done = subprocess.run(["cp", "-a", "-x", "--no-target-directory", source, path],
                          stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        told = " ".join(done.stderr.decode(errors="replace").split())
        quit_with(f"cannot copy {source}: {told[-300:]}")
    os.sync()
    tree = Tree(path)
    if tree.special:
        quit_with(f"{source} holds FIFOs, sockets or devices, which diff cannot compare", 2)
    return tree


def remove(path):
    """Removes a tree, if it is there, and nothing that is mounted in it."""
    if os.path.lexists(path):
        subprocess.run(["rm", "-rf", "--one-file-system", path], check=False)
    if os.path.lexists(path):
        quit_with(f"cannot remove {path}")


def difference(source, target, keeps):
    """What differs between two trees, in one sentence, or None.

    `keeps` is "contents", "metadata" (times to the second) or "exact".
    """
    commands = [["diff", "-r", "--no-dereference", source, target]]
    if keeps != "contents":
        exact = ["--modify-window=-1"] if keeps == "exact" else []
        commands.append(["rsync", "-aHAXn", "--delete", "--itemize-changes", *exact,
                         source + "/", target + "/"])
    for words in commands:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0 or done.stdout:
            told = " ".join(done.stdout.decode(errors="replace").split())
            return f"the target differs from the source, says {words[0]}: {told[:300]}"
    return None


def fingerprint(path):
    """A digest that any change to any entry below a directory changes."""
    lines = []
    for entry in walk(path):
        told = entry.stat(follow_symlinks=False)
        lines.append(f"{entry.path}\0{told.st_ino} {told.st_mtime_ns} {told.st_ctime_ns}")
    return hashlib.blake2b("\n".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def drop_caches():
    """Makes every file of the machine cold. Needs root."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")
