"""Programs that cheat or do harm. Words in capitals stand for what `hostile_harness` puts in their place.

VICTIM is a process of the same user, outside the sandbox; PRIVATE a file of that user; PORT and SOCKET are listened at;
SANDBOX is the folder of the sandbox's own files.
"""

# ruff: noqa: E501

from __future__ import annotations

SECRET = 48_611_793
CHECK = f"add = untrusted.add\nexpected = {SECRET}\nassert add(1, 2) == expected"

HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory bomb": "x = []\nwhile True:\n    x.append(bytearray(10**7))",
    "endless loop": "while True: pass",
    "sleeper": "import time; time.sleep(60)",
    "huge output": "while True: print('x' * 10**6)",
    "huge file": "open('x', 'wb').write(b'x' * 10**8)",
    "many files": "n = 0\nwhile True:\n    open(str(n), 'wb').write(b'x' * 10**6); n += 1",
    "os._exit before the check": "import os; os._exit(0)",
    "sys.exit before the check": "import sys; sys.exit(0)",
    "os._exit within the check": "import os\ndef add(a, b): os._exit(0)",
    "printed pass": (
        'import os\nprint(\'{"outcome": "passed", "message": ""}\', flush=True)\n'
        'os.write(1, b\'{"outcome": "passed", "message": ""}\\n\')\nos._exit(0)'
    ),
    "pass written into every descriptor": (
        "import os\nfor n in range(64):\n"
        '    try: os.write(n, b\'{"outcome": "passed", "message": ""}\\n\')\n'
        "    except OSError: pass\nos._exit(0)"
    ),
    "replies written in advance": (
        "import os\nfor n in range(64):\n"
        '    try: os.write(n, b\'{"tuple": ["returned", null]}\\n\' * 9)\n'
        "    except OSError: pass\ndef add(a, b): return None"
    ),
    "malformed replies": (
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'[' * 60000 + b'\\n')\n    except OSError: pass"
    ),
    "endless reply": "def add(a, b): return 'x' * 10**8",
    "descriptors read": (
        "import os, re\nfound = b''\nfor n in range(64):\n"
        "    try:\n        os.set_blocking(n, False)\n        found += os.read(n, 10**6)\n    except OSError: pass\n"
        "def add(a, b): return int(re.search(rb'expected = (\\d+)', found)[1])"
    ),
    "objects and frames searched": (
        "import gc, re, sys\ndef add(a, b):\n    things, frame = gc.get_objects(), sys._getframe()\n"
        "    while frame:\n        things.append(dict(frame.f_locals)); frame = frame.f_back\n"
        "    for thing in things:\n"
        "        for text in gc.get_referents(thing):\n"
        "            found = re.search(r'expected = (\\d+)', text) if type(text) is str else None\n"
        "            if found: return int(found[1])"
    ),
    "parent's memory read": (
        "import os\ndef add(a, b):\n    maps = open(f'/proc/{os.getppid()}/maps').read()\n"
        "    return int(open(f'/proc/{os.getppid()}/mem', 'rb').read(1))"
    ),
    "parent's descriptors opened": (
        "import os\nfor n in range(64):\n"
        '    try: open(f\'/proc/{os.getppid()}/fd/{n}\', \'w\').write(\'{"outcome": "passed", "message": ""}\')\n'
        "    except OSError: pass"
    ),
    "parent traced": (
        "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0\nwhile True: pass"
    ),
    "parent killed": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)",
    "checker's modules changed": (
        "import sys\nfor module in list(sys.modules.values()):\n"
        "    for name in list(vars(module)):\n"
        "        if name in ('from_json', '_decode', 'run_check', 'failed', 'describe'):\n"
        '            setattr(module, name, lambda *_: {"outcome": "passed", "message": ""})'
    ),
    "checker's files changed": (
        "import json\nfor name in ('runner', 'child', 'setup', 'untrusted', 'system_calls', 'kernel', 'landlock', 'room', 'values'):\n"
        "    try: open(f'SANDBOX/{name}.py', 'a').write('broken(')\n    except OSError: pass"
    ),
    "assert and equality disarmed": (
        "import builtins\nbuiltins.AssertionError = builtins.Exception = type('Calm', (BaseException,), {})\n"
        "class Yes(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "def add(a, b): return Yes()"
    ),
    "own folder removed": "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\nos.rmdir(os.getcwd())",
    "link to a file outside": "import os\nos.symlink('/etc/passwd', 'link')\nopen('link').read()",
    "daemon left behind": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n"
        "    os._exit(0)\nos._exit(0)"
    ),
    "limits raised": (
        "import resource\nfor limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):\n"
        "    resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"
    ),
    "limits of the parent lowered": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))\nwhile True: pass"
    ),
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', 1))",
    "streams closed": "import os, sys\nsys.stdout.close(); sys.stderr.close()\nos.closerange(0, 64)",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)",
    "deep result": "x = []\nfor _ in range(10**5): x = [x]\ndef add(a, b): return x",
    "killed itself": "import os; os.abort()",
    "address zero read": "import ctypes; ctypes.string_at(0)",
    # disk, memory and what is left over
    "many small files": "n = 0\nwhile True:\n    open(f'a{n}', 'wb').write(b'x' * 5000); n += 1",
    "many empty files": "n = 0\nwhile True:\n    open(f'a{n}', 'wb').close(); n += 1",
    "many folders, each in the last": "import os\nwhile True:\n    os.mkdir('a'); os.chdir('a')",
    "folders too deep to be looked into": (
        "import os\nfor _ in range(20): os.mkdir('a' * 250); os.chdir('a' * 250)\n"
        "n = 0\nwhile True:\n    open(str(n), 'wb').write(b'x' * 10**6); n += 1"
    ),
    "folders without a right to look into": (
        "import os\nos.mkdir('a', 0o300); os.chdir('a')\nn = 0\n"
        "while True:\n    open(str(n), 'wb').write(b'x' * 10**6); n += 1"
    ),
    "folder without any right": "import os\nos.umask(0o777); os.mkdir('a'); open('b', 'w').close(); os.mkdir('c')",
    "removed files kept open": (
        "import os\nkept = []\nwhile True:\n"
        "    kept.append(open('a', 'wb')); kept[-1].write(b'x' * 10**6); os.remove('a')"
    ),
    "removed files kept mapped": (
        "import mmap, os\nkept = []\nwhile True:\n    file = open('a', 'w+b'); file.truncate(10**6)\n"
        "    kept.append(mmap.mmap(file.fileno(), 10**6)); kept[-1].write(b'x' * 10**6); file.close(); os.remove('a')"
    ),
    "many links": "import os\nopen('a', 'w').close()\nn = 0\nwhile True:\n    os.link('a', f'b{n}'); n += 1",
    "pipes filled": (
        "import os\nkept = []\nwhile True:\n    kept.append(os.pipe()); os.set_blocking(kept[-1][1], False)\n"
        "    os.write(kept[-1][1], b'x' * 2**16)"
    ),
    "thread bomb": (
        "import threading, time\nthreading.stack_size(32768)\nwhile True:\n"
        "    try: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n    except RuntimeError: pass"
    ),
    "shared memory bomb": "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 10**7)); x[-1].write(b'x' * 10**7)",
    "memory locked": (
        "import ctypes, mmap\nx = mmap.mmap(-1, 10**7)\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(x))\n"
        "assert ctypes.CDLL(None).mlock(ctypes.c_void_p(address), 10**7) == 0\ndef add(a, b): return 0"
    ),
    # forged outcomes
    "iteration ended instead of an answer": "def add(a, b): raise StopIteration",
    "check's own error": "def add(a, b): raise AssertionError",
    "exit in the middle of an answer": (
        "import os\ndef add(a, b):\n    for n in range(3, 64):\n"
        '        try: os.write(n, b\'{"tuple": ["returned", \')\n        except OSError: pass\n    os._exit(0)'
    ),
    "replies of every kind": (
        "import itertools, os\nreplies = itertools.cycle(['{\"int\": \"zz\"}', '{\"range\": [1, 2, 0]}', '[]', '{}', '1e999',\n"
        "    '{\"Fraction\": \"1/0\"}', '{\"Decimal\": \"sNaN\"}', '{\"dict\": [[[], 1]]}', '{\"other\": {}}', 'NaN', '\\x00'])\n"
        "def add(a, b):\n    text = next(replies)\n    for n in range(3, 64):\n"
        '        try: os.write(n, f\'{{"tuple": ["returned", {text}]}}\\n\'.encode())\n        except OSError: pass\n    return 0'
    ),
    "errors of every name": (
        "import builtins\nnames = iter(sorted(name for name in dir(builtins) if isinstance(getattr(builtins, name), type)))\n"
        "def add(a, b): raise type(next(names), (Exception,), {})()"
    ),
    "end at the end": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "exit status of success by a signal": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "expected value in the checker's frames": (
        "import inspect, sys\ndef add(a, b):\n    for frame in sys._current_frames().values():\n        while frame:\n"
        "            if 'expected' in frame.f_globals: return frame.f_globals['expected']\n            frame = frame.f_back"
    ),
    "expected value in memory": (
        "import ctypes, re\ndef add(a, b):\n    for line in open('/proc/self/maps'):\n"
        "        start, end = (int(x, 16) for x in line.split()[0].split('-'))\n"
        "        found = re.search(rb'expected = (\\d+)', ctypes.string_at(start, end - start))\n"
        "        if found: return int(found[1])"
    ),
    "environment read": "import os\ndef add(a, b): return int(os.environ['HOSTILE_SECRET'])",
    "private file read": "def add(a, b): return int(open('PRIVATE').read())",
    "parent's environment read": (
        "import os, re\ndef add(a, b):\n"
        "    return int(re.search(rb'HOSTILE_SECRET=(\\d+)', open(f'/proc/{os.getppid()}/environ', 'rb').read())[1])"
    ),
}

_CALL = """
import ctypes, os, struct
machine = ("x86_64", "aarch64").index(os.uname().machine)
libc = ctypes.CDLL(None, use_errno=True)
def call(numbers, *arguments):
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = libc.syscall(ctypes.c_long(numbers[machine]), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
FCNTL, IOCTL = (72, 25), (16, 29)
reading, writing = os.pipe()
"""

# Each is a crime by itself: what comes after it is reached only if the kernel let it happen.
CRIMES = {
    # signals to others
    "F_SETOWN": "call(FCNTL, reading, 8, VICTIM)",
    "F_SETOWN with high bits": "call(FCNTL, reading, 8 | 1 << 40, VICTIM)",
    "F_SETSIG": "call(FCNTL, reading, 10, 9)",
    "F_SETOWN_EX": "call(FCNTL, reading, 15, struct.pack('ii', 1, VICTIM))",
    "O_ASYNC": "import fcntl; fcntl.fcntl(reading, 4, 0o20000)",
    "O_ASYNC with O_NONBLOCK": "import fcntl; fcntl.fcntl(reading, 4, 0o24000)",
    "F_SETLEASE": "open('a', 'w').close(); call(FCNTL, os.open('a', 0), 1024, 0)",
    "F_NOTIFY": "call(FCNTL, os.open('.', 0), 1026, 0x8000003F)",
    "FIOSETOWN": "call(IOCTL, reading, 0x8901, struct.pack('i', VICTIM))",
    "SIOCSPGRP": "call(IOCTL, reading, 0x8902, struct.pack('i', VICTIM))",
    "FIOASYNC": "call(IOCTL, reading, 0x5452, struct.pack('i', 1))",
    "FIOASYNC with high bits": "call(IOCTL, reading, 0x5452 | 1 << 40, struct.pack('i', 1))",
    "TIOCSTI": "call(IOCTL, 0, 0x5412, b'x')",
    "TIOCSCTTY": "call(IOCTL, 0, 0x540E, 1)",
    "kill": "os.kill(VICTIM, 9)",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill all": "os.kill(-1, 9)",
    "kill the group": "os.kill(0, 9)",
    "tkill": "call((200, 130), VICTIM, 9)",
    "tgkill": "call((234, 131), VICTIM, VICTIM, 9)",
    "rt_sigqueueinfo": "call((129, 138), VICTIM, 9, bytes(128))",
    "rt_tgsigqueueinfo": "call((297, 240), VICTIM, VICTIM, 9, bytes(128))",
    "timer_create": "call((222, 107), 1, struct.pack('qiii', 0, 9, 4, VICTIM) + bytes(64), bytes(8))",
    "mq_open": "call((240, 180), b'hostile', 0o102, 0o600, None)",
    "mq_notify": "call((244, 184), reading, struct.pack('qii', 0, 9, 0) + bytes(64))",
    "pidfd_open": "call((434, 434), VICTIM, 0)",
    "pidfd_send_signal": "call((424, 424), os.open('.', 0), 9, None, 0)",
    "setpriority": "os.setpriority(os.PRIO_PROCESS, VICTIM, 19)",
    "sched_setaffinity": "os.sched_setaffinity(VICTIM, {0})",
    "sched_setscheduler": "call((144, 119), VICTIM, 5, struct.pack('i', 0))",
    "ioprio_set": "call((251, 30), 1, VICTIM, 3 << 13)",
    "prlimit": "import resource; resource.prlimit(VICTIM, resource.RLIMIT_CPU, (0, 0))",
    "prlimit read": "import resource; resource.prlimit(VICTIM, resource.RLIMIT_CPU)",
    "setrlimit": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
    # other processes
    "ptrace": "call((101, 117), 16, VICTIM, 0, 0)",
    "ptrace the parent": "call((101, 117), 0x4206, os.getppid(), 0, 0)",
    "process_vm_readv": "call((310, 270), VICTIM, bytes(16), 1, bytes(16), 1, 0)",
    "process_vm_writev": "call((311, 271), VICTIM, bytes(16), 1, bytes(16), 1, 0)",
    "process_madvise": "call((440, 440), reading, None, 0, 21, 0)",
    "process_mrelease": "call((448, 448), reading, 0)",
    "pidfd_getfd": "call((438, 438), reading, 0, 0)",
    "kcmp": "call((312, 272), os.getpid(), os.getppid(), 0, 0, 0)",
    "get_robust_list": "call((274, 100), VICTIM, bytes(8), bytes(8))",
    "migrate_pages": "call((256, 238), VICTIM, 64, bytes(8), bytes(8))",
    "memory of the victim": "open('/proc/VICTIM/mem', 'r+b')",
    "memory of the parent": "open(f'/proc/{os.getppid()}/mem', 'r+b')",
    "own memory as a file": "open('/proc/self/mem', 'r+b')",
    "root through a process": "os.listdir('/proc/VICTIM/root')",
    "descriptors of the victim": "os.listdir('/proc/VICTIM/fd')",
    "process table": "os.listdir('/proc')",
    # new processes
    "fork": "os.fork()",
    "vfork": "call((58, 220), 0x4111)",
    "clone without a thread": "call((56, 220), 17, 0, 0, 0, 0)",
    "clone beside": "call((56, 220), 0x8011, 0, 0, 0, 0)",
    "clone of a namespace": "call((56, 220), 0x10000011, 0, 0, 0, 0)",
    "clone3": "call((435, 435), struct.pack('QQQQQQQQ', 0, 0, 0, 0, 17, 0, 0, 0), 64)",
    "execve": "os.execv('/bin/sh', ['sh', '-c', 'true'])",
    "execveat": "call((322, 281), -100, b'/bin/true', None, None, 0)",
    "memfd_create": "os.memfd_create('a')",
    "memory executed": (
        "os.write(fd := os.memfd_create('a'), b'#!/bin/sh\\n'); call((322, 281), fd, b'', None, None, 0x1000)"
    ),
    "memfd_secret": "call((447, 447), 0)",
    "subprocess": "import subprocess; subprocess.run(['true'])",
    "multiprocessing": "import multiprocessing as m; m.set_start_method('fork'); m.Process(target=print).start()",
    "setsid": "os.setsid()",
    "setpgid": "os.setpgid(0, 0)",
    # the network
    "connection": "import socket; socket.create_connection(('127.0.0.1', PORT))",
    "abstract socket": "import socket; socket.socket(socket.AF_UNIX).connect('\\0SOCKET')",
    "socketpair": "import socket; socket.socketpair()",
    "datagram": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "packets": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "vsock": "import socket; socket.socket(40, socket.SOCK_STREAM)",
    "crypto sockets": "import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)",
    "asyncio": "import asyncio; asyncio.run(asyncio.open_connection('127.0.0.1', PORT))",
    # ways around the filter, and doors of the kernel
    "io_uring_setup": "call((425, 425), 1, bytes(120))",
    "io_uring_enter": "call((426, 426), reading, 1, 0, 0, None, 0)",
    "bpf": "call((321, 280), 0, bytes(128), 128)",
    "perf_event_open": "call((298, 241), bytes(128), VICTIM, -1, -1, 0)",
    "userfaultfd": "call((323, 282), 1)",
    "seccomp with a listener": "call((317, 277), 1, 8, bytes(16))",
    "prctl seccomp": "call((157, 167), 22, 2, bytes(16))",
    "prctl dumpable": "call((157, 167), 4, 1, 0, 0, 0)",
    "prctl without the parent's death": "call((157, 167), 1, 0, 0, 0, 0)",
    "prctl subreaper": "call((157, 167), 36, 1, 0, 0, 0)",
    "prctl timing": "call((157, 167), 26, 1, 0, 0, 0)",
    "personality": "call((135, 92), 0x40000)",
    "x32": "call((0x40000000 | 39, 1 << 20))",
    "unknown call": "call((4000, 4000))",
    "inotify": "call((294, 26), 0)",
    "fanotify": "call((300, 262), 0, 0)",
    "signalfd": "call((289, 74), -1, bytes(8), 8, 0)",
    "timerfd": "call((283, 85), 1, 0)",
    "landlock again": "call((444, 444), None, 0, 1)",
    "splice": "call((275, 76), reading, None, writing, None, 1, 0)",
    "vmsplice": "call((278, 75), writing, None, 0, 0)",
    "syslog": "call((103, 116), 10, None, 0)",
    "reboot": "call((169, 142), 0, 0, 0, None)",
    "module": "call((175, 105), b'', 0, b'')",
    "kexec": "call((246, 104), 0, 0, None, 0)",
    "swap": "call((167, 224), b'a', 0)",
    "accounting": "call((163, 89), b'a')",
    "clock": "call((227, 112), 0, bytes(16))",
    "host name": "call((170, 161), b'hostile', 7)",
    "ports of the processor": "call((172, 1 << 20), 3)",
    "descriptor table": "call((154, 1 << 20), 1, bytes(16), 16)",
    # rights
    "root again": "os.setuid(0)",
    "another user": "os.setresuid(1, 1, 1)",
    "groups": "os.setgroups([0])",
    "capabilities": "call((126, 91), struct.pack('IiIIIIII', 0x20080522, 0, -1 & 0xFFFFFFFF, -1 & 0xFFFFFFFF, 0, 0, 0, 0))",
    "unshare": "call((272, 97), 0x10000000)",
    "setns": "call((308, 268), reading, 0)",
    "mount": "call((165, 40), b'none', b'.', b'tmpfs', 0, None)",
    "umount": "call((166, 39), b'.', 2)",
    "chroot": "os.chroot('.')",
    "pivot_root": "call((155, 41), b'.', b'.')",
    "new mounts": "call((430, 430), b'tmpfs', 0)",
    "open_tree": "call((428, 428), -100, b'.', 1)",
    "mount_setattr": "call((442, 442), -100, b'.', 0, bytes(32), 32)",
    "handles of files": "call((303, 264), -100, b'/', bytes(256), bytes(4), 0)",
    "files by handle": "call((304, 265), os.open('.', 0), bytes(256), 0)",
    "quota": "call((179, 60), 0x800002, None, 0, None)",
    # what outlives a process
    "shmget": "call((29, 194), 0x6D6572, 4096, 0o1600)",
    "semget": "call((64, 190), 0x6D6572, 1, 0o1600)",
    "msgget": "call((68, 186), 0x6D6572, 0o1600)",
    "shared memory by name": "from multiprocessing import shared_memory as s; s.SharedMemory('hostile', True, 4096)",
    "semaphore by name": "import multiprocessing; multiprocessing.Lock()",
    "file in shared memory": "open('/dev/shm/hostile', 'w')",
    "file in the temporary folder": "open('/tmp/hostile', 'w')",
    "file in the home": "open(os.path.expanduser('~/hostile'), 'w')",
    "add_key": "call((248, 217), b'user', b'hostile', b'x', 1, -4)",
    "request_key": "call((249, 218), b'user', b'hostile', None, -4)",
    "keyctl": "call((250, 219), 0, -3, 1)",
    "space beyond the end of a file": "call((285, 47), os.open('a', 0o102), 1, 0, 1 << 33)",
    "space reserved": "os.posix_fallocate(os.open('a', 0o102), 0, 1000)",
    "file larger than allowed": "open('a', 'w').truncate(2**40)",
    "special file": "os.mknod('a', 0o20600, os.makedev(1, 1))",
    "named pipe": "call((133, 33) if machine == 0 else (33, 33), b'a', 0o10600, 0) if machine == 0 else os.mkfifo('a')",
    # files of others
    "private file": "open('PRIVATE')",
    "private file changed": "open('PRIVATE', 'w')",
    "private file removed": "os.remove('PRIVATE')",
    "private file's folder": "os.listdir(os.path.dirname('PRIVATE'))",
    "private file by a link": "os.symlink('PRIVATE', 'a'); open('a')",
    "private file by a hard link": "os.link('PRIVATE', 'a')",
    "private file moved": "os.rename('PRIVATE', 'a')",
    "private file's mode": "os.chmod('PRIVATE', 0)",
    "private file's times": "os.utime('PRIVATE', (0, 0))",
    "private file's attributes": "os.setxattr('PRIVATE', 'user.a', b'x')",
    "private file's length": "os.truncate('PRIVATE', 0)",
    "library by a hard link": "os.link(os.__file__, 'a')",
    "library changed": "open(os.__file__, 'a')",
    "other programs' folders": "os.listdir('..')",
    "folder above": "open('../a', 'w')",
    "folders of other sandboxes": "os.listdir(os.path.dirname(os.path.dirname(os.getcwd())))",
    "passwords": "open('/etc/shadow')",
    "system's settings": "open('/etc/passwd')",
    "kernel's settings": "open('/sys/kernel/mm/transparent_hugepage/enabled')",
    "terminal": "open('/dev/tty', 'w')",
    "disk": "open('/dev/vda', 'rb')",
    "kernel's messages": "open('/dev/kmsg')",
}
CRIMES = {name: f"{_CALL}\n{text}\n" for name, text in CRIMES.items()}
