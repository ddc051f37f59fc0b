"""File systems of a kind that was asked for, made in files and loop-mounted.

Leaves to compare-trees: what lies on them. Invariant: what is mounted here is
unmounted when the script ends, however it ends (SIGKILL excepted), and its
loop device and its file go with it. Needs root.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time

import measure
from measure import GIB, MIB, quit_with

MAKERS = {"ext4": (["mkfs.ext4", "-q", "-F"], "e2fsprogs"), "xfs": (["mkfs.xfs", "-q"], "xfsprogs")}
# mkfs.ext4 makes an inode for so many bytes of the file system.
BYTES_PER_INODE = 16384


def written(entries, content_bytes):
    """Bytes, generously, that so many entries with so much content take."""
    return (content_bytes + 8192 * entries) * 5 // 4


def room(entries, content_bytes):
    """Bytes of an image that they fit in."""
    needed = max(written(entries, content_bytes), BYTES_PER_INODE * entries * 6 // 5)
    # The file is sparse: what is not written takes no place. A loop device
    # wants whole sectors, direct I/O whole blocks.
    return needed // MIB * MIB + 2 * GIB


def must_fit(directory, plans):
    """Ends the script where what the images will hold is more than is free."""
    directory = directory or tempfile.gettempdir()
    needed = sum(written(*plan) for plan in plans) + GIB
    free = shutil.disk_usage(directory).free
    if needed > free:
        quit_with(f"the images may take {needed / GIB:.1f} GiB, and {directory} has "
                  f"{free / GIB:.1f} GiB free: say --image-dir or fewer files", 2)


def tool(name, package):
    """Where a tool of root's lies."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        quit_with(f"{name} was not found: install {package}", 2)
    return path


def must(words):
    """Runs a command that has to go well; what it printed on standard output."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        told = " ".join(done.stderr.decode(errors="replace").split())
        quit_with(f"{' '.join(words)} ended with {done.returncode}: {told[-300:]}")
    return done.stdout.decode(errors="replace").strip()


def unmount(point):
    """Unmounts an image, if it is mounted."""
    for _ in range(50):
        if not os.path.ismount(point):
            return
        if subprocess.run(["umount", point], stderr=subprocess.DEVNULL,
                          check=False).returncode == 0:
            return
        time.sleep(0.1)
    print(f"{point} is still in use: it goes when its last user ends", file=sys.stderr)
    subprocess.run(["umount", "--lazy", point], check=False)


def take_down(losetup, image, point):
    """Ends an image's mount and every loop device that stands on it."""
    # A server that still stands on it would keep it.
    measure.stop_everything()
    unmount(point)
    done = subprocess.run([losetup, "--noheadings", "--output", "NAME", "--associated", image],
                          stdout=subprocess.PIPE, check=False)
    for device in done.stdout.decode().split():
        subprocess.run([losetup, "--detach", device], check=False)


def mount(kind, directory, label, length):
    """Makes and mounts one image below `directory`; where it is mounted."""
    words, package = MAKERS[kind]
    # A directory whose removal is registered first is removed last.
    place = measure.scratch(directory, f"image-{label}")
    image, point = os.path.join(place, "image"), os.path.join(place, "mounted")
    os.mkdir(point)
    with open(image, "wb") as file:
        file.truncate(length)
    must([tool(words[0], package), *words[1:], image])
    losetup = tool("losetup", "mount")
    atexit.register(take_down, losetup, image, point)
    # Without direct I/O the image's pages would be cached beneath the file
    # system's own, and a flush would wait for both.
    device = must([losetup, "--find", "--show", "--direct-io=on", image])
    must(["mount", "-t", kind, device, point])
    # While it is mounted, detaching is put off until it is not, even where a
    # killed script leaves that to somebody else.
    must([losetup, "--detach", device])
    return point
