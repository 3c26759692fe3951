"""Limits on the process that runs a student's code. It is loaded by itself, before the library or that code is.

On Linux four layers, none of which the code can take off again: limits on time and memory (``setrlimit``), no
capabilities, Landlock (only Python, its packages and the spliced library can be read, nothing can be written), and
seccomp (no network, no threads or processes, nothing that reaches other processes, no changes to a file's owner or
mode). Elsewhere only what ``resource`` offers: good enough for one's own code, not for grading a stranger's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

FORBIDDEN = (
    # network and channels to other processes
    "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg",
    "shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl",
    "mq_open", "mq_unlink", "memfd_create", "inotify_init", "inotify_init1", "fanotify_init",
    # other programs, processes and threads
    "execve", "execveat", "fork", "vfork", "clone", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp",
    "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal", "pidfd_getfd",
    "move_pages", "migrate_pages", "process_madvise", "process_mrelease", "sched_setaffinity", "sched_setparam",
    "sched_setscheduler", "sched_setattr", "ioprio_set", "setpriority",
    # what Landlock leaves open: it guards the contents of files (lengths only from Linux 6.2 on), not modes or owners
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "futimesat",
    "utimensat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr",
    "removexattrat", "file_setattr", "truncate", "ftruncate", "sync", "syncfs",
    # more than was given
    "setrlimit", "unshare", "setns", "mount", "umount2", "chroot", "pivot_root", "keyctl", "add_key", "request_key",
    "bpf", "perf_event_open", "io_uring_setup", "userfaultfd", "personality", "reboot", "swapon", "swapoff",
    "init_module", "finit_module", "kexec_load", "settimeofday", "clock_settime", "sethostname", "quotactl",
    "name_to_handle_at", "open_by_handle_at",
)  # fmt: skip
PDEATHSIG = 1  # of prctl
OWNER_AND_SIGNAL = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX of fcntl: a pipe could send any signal to anyone


def confine(settings: str) -> None:
    """Apply every layer that this system has. ``settings``: JSON with cpu_seconds, memory, readable, layers."""
    wanted = json.loads(settings)
    end_with(wanted["parent"])
    if "seccomp" in wanted["layers"]:
        seccomp_library()  # while files can still be read
    if "limits" in wanted["layers"]:
        limit_resources(wanted["cpu_seconds"], wanted["memory"])
    if "capabilities" in wanted["layers"]:
        drop_capabilities()
    if "landlock" in wanted["layers"]:
        hide_files(wanted["readable"])
    if "seccomp" in wanted["layers"]:
        forbid_calls()


def end_with(parent: int) -> None:
    """Where the grader is killed, this process goes too. Linux only; elsewhere it ends when its pipe closes."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PDEATHSIG, 9, 0, 0, 0)
        if os.getppid() != parent:  # too late
            os._exit(1)


def available() -> tuple[str, ...]:
    """The layers that can be applied here."""
    layers = ["limits"] if find_spec("resource") else []
    if sys.platform == "linux":
        layers.append("capabilities")
        if find_spec("landlock") and _works(lambda: landlock_version() >= 1):
            layers.append("landlock")
        if find_spec("pyseccomp") and _works(seccomp_library):
            layers.append("seccomp")
    return tuple(layers)


ALL_LAYERS = ("limits", "capabilities", "landlock", "seccomp")


def _works(attempt: Callable[[], Any]) -> bool:
    try:
        return bool(attempt())
    except Exception:  # no such system call, no such shared library
        return False


def landlock_version() -> int:
    from landlock import landlock_abi_version

    return int(landlock_abi_version())


def limit_resources(cpu_seconds: int, memory: int) -> None:
    import resource

    def lower(kind: int, soft: int, hard: int) -> None:
        most = resource.getrlimit(kind)[1]
        cap = [n if most == resource.RLIM_INFINITY else min(n, most) for n in (soft, hard)]
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit on address space
            resource.setrlimit(kind, (cap[0], cap[1]))

    lower(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    lower(resource.RLIMIT_AS, memory, memory)
    lower(resource.RLIMIT_FSIZE, 1 << 20, 1 << 20)
    lower(resource.RLIMIT_NOFILE, 64, 64)
    lower(resource.RLIMIT_CORE, 0, 0)


def drop_capabilities() -> None:
    """Root without its powers: it can no longer raise limits, read what it does not own, or change its user."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def hide_files(readable: list[str]) -> None:
    from landlock import FSAccess, Ruleset

    rules = Ruleset()
    look = FSAccess.READ_FILE | FSAccess.READ_DIR | FSAccess.EXECUTE
    for path in readable:
        if os.path.isdir(path):
            rules.allow(path, rules=look)
        elif os.path.exists(path):
            rules.allow(path, rules=look & ~FSAccess.READ_DIR)
    rules.apply()


def forbid_calls() -> None:
    import errno

    seccomp = seccomp_library()
    no = seccomp.ERRNO(errno.EPERM)
    calls = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    for name in FORBIDDEN:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a call that this processor does not have
            calls.add_rule(no, name)
    here = os.getpid()
    calls.add_rule(no, "kill", seccomp.Arg(0, seccomp.NE, here))
    calls.add_rule(no, "tgkill", seccomp.Arg(0, seccomp.NE, here))
    calls.add_rule(no, "prlimit64", seccomp.Arg(2, seccomp.NE, 0))  # reading limits is harmless
    calls.add_rule(no, "prctl", seccomp.Arg(0, seccomp.EQ, PDEATHSIG))
    for command in OWNER_AND_SIGNAL:
        calls.add_rule(no, "fcntl", seccomp.Arg(1, seccomp.EQ, command))
    calls.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")  # libc falls back to clone
    calls.load()


def seccomp_library() -> Any:
    """``pyseccomp``, without the compiler that it would start to find the shared libraries: they have known names."""
    import ctypes.util

    search = ctypes.util.find_library
    ctypes.util.find_library = lambda name: {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}.get(name) or search(name)
    try:
        import pyseccomp
    finally:
        ctypes.util.find_library = search
    return pyseccomp


def readable_paths(library: str, hidden: list[str]) -> list[str]:
    """What the process must read: Python, its packages and ``library``, without the folders ``hidden``.

    Of an environment not all: its folder may hold a project too, and the submissions.
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    roots = {os.path.join(p, part) for p in prefixes for part in ("bin", "lib", "lib64", "pyvenv.cfg")}
    roots |= {"/usr", "/lib", "/lib64"} | {p for p in sys.path if p.endswith(("site-packages", "dist-packages"))}
    roots |= {"/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom"}
    real = {os.path.realpath(p) for p in roots if os.path.exists(p)}
    shut = [os.path.realpath(h) for h in hidden]
    return sorted({os.path.realpath(library), *(p for root in real for p in _without(root, shut))})


def _without(root: str, hidden: list[str]) -> list[str]:
    """``root``, or as much of what it contains as is not in ``hidden``."""
    if any(root == h or root.startswith(h + os.sep) for h in hidden):
        return []
    if not any(h.startswith(root + os.sep) for h in hidden):
        return [root]
    return [p for name in os.listdir(root) for p in _without(os.path.join(root, name), hidden)]
