"""The sandbox as a program that wants out, or wants a better mark, meets it."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from emkit.errors import UserError
from eval import sandbox
from eval.sandbox import Limits, probes, seccomp, wire

ROOT = Path(__file__).parent.parent
QUICK = Limits(cpu_seconds=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The sandboxes' temporary folders lie here, in a folder that only its owner may enter."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def run(program: str, *calls, **options) -> sandbox.Result:
    return sandbox.run(program, list(calls), **options)


def processes(word: str) -> list[str]:
    """The command lines, of all processes, that hold ``word``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if word in line]


# --------------------------------------------------------------------------------------------- verdicts
def test_calls_are_compared_with_their_expected_values():
    program = "def add(a, b):\n    return a + b\ndef pair(x):\n    return x, {x: [x]}, {x}, None, 2.5"
    assert run(program, ("add(1, 2)", 3), ("add('a', 'b')", "ab"), ("pair(1)", (1, {1: [1]}, {1}, None, 2.5))).passed
    wrong = run(program, ("add(1, 2)", 3), ("add(1, 3)", 5))
    assert (wrong.status, wrong.detail) == ("failed", "add(1, 3) is 4, not 5")
    assert run(program, ("add(10**5000, 1)", 5)).status == "failed"  # a number that Python refuses to write
    assert not run(program, ("pair(1)", [1, {1: [1]}, {1}, None, 2.5])).passed  # a tuple is no list


# the shape of HumanEval/32: its check uses a function of the prompt, which the program repeats and might change
PROMPT = '''
import math

def poly(xs, x):
    return sum(c * math.pow(x, i) for i, c in enumerate(xs))

def find_zero(xs):
    """ the x with poly(xs, x) = 0 """
'''
CHECK = """
import random
def check(candidate):
    for _ in range(5):
        xs = [random.randint(1, 9), random.randint(1, 9)]
        assert abs(poly(xs, candidate(list(xs)))) < 1e-4, xs
check(find_zero)
"""


def test_a_check_function_runs_apart_from_the_program():
    def judged(body):
        return sandbox.run(PROMPT + body, CHECK, prelude=PROMPT, names=["find_zero"])

    assert judged("    return -xs[0] / xs[1]\n").passed
    assert judged("    return 0.0\n").status == "failed"
    assert judged("    return 0.0\ndef poly(xs, x):\n    return 0.0\n").status == "failed"


def test_assert_lines_as_mbpp_writes_them():
    program = "class Pair:\n    def __init__(s, a, b):\n        s.a, s.b = a, b\n"
    program += "def total(ps):\n    return sum(p.a for p in ps)"
    tests = "import math\nassert total([Pair(1, 2), Pair(3, 4)]) == 4\nassert math.isclose(total([]), 0)"
    assert sandbox.called_names(tests) == ["Pair", "total"]
    assert sandbox.run(program, tests).passed
    failed = sandbox.run(program, tests + "\nassert total([Pair(1, 2)]) == 2")
    assert failed.detail == "assert total([Pair(1, 2)]) == 2: AssertionError"
    raising = "try:\n    total(5)\n    assert False\nexcept TypeError:\n    pass"
    assert sandbox.run(program, raising).passed
    assert sandbox.run("def total(ps):\n    return 0", raising).status == "failed"


@pytest.mark.parametrize("program", ["def f(:", "import nothing_of_this_name", "raise KeyError('k')", "", "f = 3"])
def test_programs_that_do_not_work(program):
    assert run(program, ("f()", 1)).status == "failed"
    assert sandbox.run(program, "assert f() == 1").status == "failed"


def test_the_same_program_gets_the_same_verdict():
    program = "import random\ndef f():\n    return list({'a', 'b', 'c', 'd', 'e'}), random.random(), hash('x')"
    first = run(program, ("f()", 0))
    assert first.status == "failed" and run(program, ("f()", 0)) == first


def test_plain_data_crosses_unchanged():
    for value in (
        10**500,
        -(2**2000),
        0.1,
        float("inf"),
        1 + 2j,
        b"\0\xff",
        "\ud800é",
        (1, [2, {3: {4}}]),
        frozenset((5,)),
    ):
        assert wire.loads(wire.dumps(value, None), None) == value
    for text in ("{", '{"list": 3}', '{"os": 1}', '{"int": 5}', '{"set": [{"list": []}]}', "[" * 100_000):
        with pytest.raises(ValueError):
            wire.loads(text, None)
    with pytest.raises(UserError, match="plain data"):
        run("", ("f()", object()))
    with pytest.raises(UserError, match="no Python"):
        sandbox.run("", "assert (")


# ------------------------------------------------------------------------------------------------ forging
FORGERIES = {
    "exit": "exit(0)",
    "hard exit": "import os; os._exit(0)",
    "exit when called": "import os\ndef f(x): os._exit(0)",
    "system exit": "def f(x): raise SystemExit(0)",
    "assert patched": "import builtins\nclass E(BaseException): pass\nbuiltins.AssertionError = E\n"
    "__builtins__['AssertionError'] = E\ndef f(x): return 0",
    "equal to everything": "class A:\n    def __eq__(s, o): return True\n    __ne__ = __eq__\ndef f(x): return A()",
    "an int equal to everything": "class A(int):\n    def __eq__(s, o): return True\ndef f(x): return A(5)",
    "sentinel on every file": "import os\nfor fd in range(32):\n"
    "    for text in (b'passed\\n', b'[\"passed\", \"\"]\\n'):\n"
    "        try: os.write(fd, text)\n        except OSError: pass\ndef f(x): return 0",
    "a verdict instead of an answer": "import os, sys\ndef f(x):\n    for fd in range(3, 32):\n"
    '        try: os.write(fd, b\'{"value": "passed", "status": "passed"}\\n\')\n'
    "        except OSError: pass\n    os._exit(0)",
    "looking for the answer": "import gc, sys\ndef f(x):\n"
    "    seen = [o for o in gc.get_objects() if isinstance(o, dict)]\n"
    "    return next((v for o in seen for v in o.values() if isinstance(v, str) and v.startswith('expec' + 'ted')), 0)",
    "raising what the test may expect": "def f(x): raise AssertionError('passed')",
    "a class as the answer": "def f(x): return type",
}


def test_a_program_cannot_end_the_loop_over_its_tests():
    tests = "for value, right in zip(map(f, [1, 2]), [2, 3]):\n    assert value == right"
    assert sandbox.run("def f(x): return x + 1", tests).passed
    assert sandbox.run("def f(x): raise StopIteration", tests).status == "failed"


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_a_result_cannot_be_forged(program):
    assert run(program, ("f(1)", "expected value")).status == "failed"
    assert sandbox.run(program, "assert f(1) == 'expected value'").status == "failed"
    assert (
        sandbox.run(program, "def check(c):\n    if c(1) != 'expected value': raise Exception\ncheck(f)").status
        == "failed"
    )


# --------------------------------------------------------------------------------------------------- limits
LIMITS = {
    "fork bomb": ("import os\nwhile True: os.fork()", "failed"),
    "threads": ("import threading\nwhile True: threading.Thread(target=input).start()", "failed"),
    "10 GB": ("x = bytearray(10 * 2**30)", "memory"),
    "a growing list": ("x = [0]\nwhile True: x += x", "memory"),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**8)\nclass A:\n    def __repr__(s): return repr(s)\nrepr(A())",
        "failed",
    ),
    "endless loop": ("while True: pass", "timeout"),
    "power chain": ("x = 9**9**9", "timeout"),
    "sleep": ("import time\ntime.sleep(1000)", "timeout"),
    "loop that heeds no signal": (
        "import signal\nfor s in range(1, 32):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "timeout",
    ),
    "flooded output": ("import sys\nwhile True: print('x' * 10**6); sys.stderr.write('y' * 10**6)", "timeout"),
    "flooded answer": ("import os\nwhile True:\n    for fd in range(3, 32):\n        try: os.write(fd, b'x' * 10**5)\n"
                       "        except OSError: pass", "failed"),
    "large file": ("open('f', 'w').write('x' * 10**8)", "failed"),
    "many files": ("i = 0\nwhile True:\n    i += 1\n    open(str(i), 'w').write('x')", "disk"),
    "folders": ("import os\nos.mkdir('d')", "failed"),
    "reading stdin": ("x = input()", "failed"),
}  # fmt: skip


@pytest.mark.parametrize(("program", "status"), LIMITS.values(), ids=LIMITS)
def test_limits_hold_and_nothing_is_left(program, status, folder):
    limits = Limits(cpu_seconds=1, wall_seconds=2 if "sleep" in program else 60)
    result = run(program + "\ndef f(): return 1", ("f()", 1), limits=limits)
    assert result.status == status, result
    assert list(folder.iterdir()) == [] and processes(str(folder)) == []


def test_a_long_answer_is_refused():
    assert "longer than" in run("def f(): return 'x' * 10**7", ("f()", 1)).detail


def test_every_wall_holds():
    sandbox.check()


def test_the_probes_see_a_wall_that_is_missing(tmp_path):
    """The same attempts, made by a process that nothing shuts in, all get through."""
    canary = tmp_path / "canary"
    canary.write_text("secret")
    calls = [call for call, _ in probes.attempts(str(canary), 1, os.getpid())]
    calls = [call for call in calls if call.split("(")[0] not in ("memory", "start", "connect", "own_folder")]
    code = "import json, sys\nexec(sys.argv[1])\nprint(json.dumps([eval(call) for call in json.loads(sys.argv[2])]))"
    command = [sys.executable, "-c", code, probes.PROGRAM, json.dumps(calls)]
    answers = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout)
    expected = dict(probes.attempts(str(canary), 1, os.getpid()))
    held = [call for call, answer in zip(calls, answers) if answer == expected[call]]
    assert held == ([] if os.geteuid() == 0 else ["root()"])


def test_nothing_of_ours_can_be_read_or_harmed(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    program = f"""
import os, glob
def tries():
    got = [name for name in ("OPENAI_API_KEY", "HOME", "PATH") if name in os.environ]
    paths = ["/proc/{os.getpid()}/environ", "/proc/self/environ", "/proc/self/mem", "/etc/passwd", "/etc/hostname"]
    paths += [{str(Path.home())!r} + "/.bashrc", {str(ROOT / "README.md")!r}, {str(Path(__file__))!r}]
    paths += glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/mem")
    for path in paths:
        try: got.append((path, open(path, "rb").read(9)))
        except OSError: pass
    for path in ("/tmp/x", "/dev/shm/x", "/var/tmp/x", "../x", {str(ROOT)!r} + "/x"):
        try: got.append((path, open(path, "w")))
        except OSError: pass
    for call in (lambda: os.link("/etc/passwd", "p"), lambda: os.symlink("/etc", "e"), lambda: os.mkfifo("q"),
                 lambda: os.kill(-1, 0), lambda: os.kill({os.getpid()}, 0), lambda: os.setuid(0),
                 lambda: os.execv("/bin/sh", ["sh"]), lambda: os.memfd_create("m"),
                 lambda: os.utime({str(folder)!r}), lambda: os.chmod({str(folder)!r}, 0o777)):
        try: got.append(call())
        except OSError: pass
    return got
"""
    assert run(program, ("tries()", [])).passed
    assert list(folder.iterdir()) == []


def test_only_the_listed_system_calls_pass():
    """Every number that the kernel could know, asked for without Python's help; also those of the x32 table."""
    machine = os.uname().machine
    column = seccomp.MACHINES[machine][1]
    uprobes = {
        335,
        336,
    }  # x86_64: the kernel's own traps, past every filter; called by anybody else they end the process
    listed = uprobes | {numbers[column] for numbers in [*seccomp.CALLS.values(), seccomp._FCNTL, seccomp._IOCTL]}
    program = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def passing():
    found = []
    for number in [*range(700), *range(2**30, 2**30 + 700)]:
        if number not in {listed!r}:
            ctypes.set_errno(0)
            if libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.EPERM:
                found.append(number)
    return found
def signals():
    commands = {{"F_SETFL": 4, "F_SETOWN": 8, "F_SETSIG": 10, "F_NOTIFY": 1026}}
    return [name for name, number in commands.items() if libc.fcntl(1, number, 9) != -1]
"""
    assert run(program, ("passing()", []), ("signals()", [])).passed


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls by 32-bit numbers are a matter of x86")
def test_a_system_call_by_its_32_bit_number_ends_the_program():
    program = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
def f():
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
    assert "died of signal" in run(program, ("f()", 0)).detail


def test_a_killed_caller_leaves_no_process(folder):
    code = "import sys, tempfile; tempfile.tempdir = sys.argv[1]\nfrom eval import sandbox\nprint(1, flush=True)\n"
    code += "sandbox.run('import time; time.sleep(1000)', [('f()', 1)])"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as caller:
        caller.stdout.readline()
        wait_until(lambda: any(path.name.startswith("emkit-program") for path in folder.iterdir()))
        wait_until(lambda: not any(path.name.startswith("emkit-canary") for path in folder.iterdir()))  # checked
        wait_until(lambda: len(processes(str(folder))) >= 3)  # the caller, the checking process, the program
        caller.kill()
    wait_until(lambda: processes(str(folder)) == [])


def wait_until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ------------------------------------------------------------------------------- other users, other systems
MAIN = """
import errno, sys
from emkit.errors import UserError
from eval import sandbox
from eval.sandbox import seccomp
if missing := [int(number) for number in sys.argv[1:]]:
    seccomp.refuse(dict.fromkeys(missing, errno.ENOSYS))
try:
    print(sandbox.run("import decimal, hashlib\\ndef f(): return 1", [("f()", 1)]).status)
except UserError as error:
    print(error)
"""


READ_ALL = 1 << 2  # CAP_DAC_READ_SEARCH
BELOW_ROOT = "/root" in os.path.realpath(sys.executable) or str(ROOT).startswith("/root")
STATUS = Path("/proc/self/status").read_text().splitlines()
GIVABLE = next(int(line.split()[1], 16) for line in STATUS if line.startswith("CapBnd")) & READ_ALL
an_ordinary_user = pytest.mark.skipif(
    os.geteuid() == 0 and BELOW_ROOT and not GIVABLE, reason="no other user can read this Python or emkit"
)


def in_a_process(*missing: int, as_user: bool = False, code: str = MAIN) -> str:
    """What a caller prints on a system that lacks the system calls ``missing``, or that is not root."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, missing)]
    before = _become_a_user if as_user and os.geteuid() == 0 else None
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, preexec_fn=before)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _become_a_user() -> None:
    """Leave root for a user without rights; but to read, where this Python or emkit lies below a folder like /root."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(8, ctypes.c_ulong(1), 0, 0, 0)  # keep capabilities over setuid
    os.setgroups([])
    os.setresgid(54321, 54321, 54321)
    os.setresuid(54321, 54321, 54321)
    needed = not all(os.access(path, os.R_OK) for path in (os.path.realpath(sys.executable), os.__file__, __file__))
    read_all = READ_ALL if needed else 0
    capabilities = (ctypes.c_uint32 * 6)(read_all, read_all, read_all)
    failed = libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), capabilities)
    if read_all:
        failed |= libc.prctl(47, ctypes.c_ulong(2), ctypes.c_ulong(2), 0, 0)  # and over exec
    assert not failed


UNSHARE = {"x86_64": 272, "aarch64": 97}
PRCTL = {"x86_64": 157, "aarch64": 167}


@an_ordinary_user
def test_an_ordinary_user_gets_the_same_walls():
    assert in_a_process(as_user=True) == "passed"


def test_where_namespaces_are_forbidden_the_other_walls_suffice():
    assert in_a_process(UNSHARE[os.uname().machine]) == "passed"


@an_ordinary_user
def test_an_ordinary_user_needs_no_namespaces_either():
    assert in_a_process(UNSHARE[os.uname().machine], as_user=True) == "passed"


def test_where_isolation_cannot_be_had_nothing_runs(monkeypatch):
    assert in_a_process(444).startswith("cannot isolate: the kernel cannot restrict files")
    assert in_a_process(PRCTL[os.uname().machine]).startswith("cannot isolate: ")
    if os.geteuid() == 0:
        setresuid = {"x86_64": 117, "aarch64": 147}[os.uname().machine]
        assert in_a_process(setresuid).startswith("cannot isolate: as root, no unprivileged user")
    probes.check.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"^cannot isolate: .*Linux only, not on darwin"):
        run("", ("f()", 1))


# ------------------------------------------------------------------------------------ what crosses, and how
CROSSING = """
from decimal import Decimal
from fractions import Fraction
def sort_it(xs): xs.sort()
def deep(xs): xs[0].append(9); xs[1]["k"] = 1
def clear(d): d.clear()
def extend(b): b.extend(b"xy")
def numbers(n): return range(n)
def exact(): return Decimal("1.10") + 1, Fraction(1, 3)
def squares(n):
    for i in range(n): yield i * i
def apply(f, xs): return [f(x) for x in xs]
def compose(f, g): return lambda x: f(g(x))
def twice(f): return f(f(2))
def first(steps): return next(steps)
def total(steps): return sum(steps)
def texts(xs): return map(str, xs)
def caught(f):
    try: f(0)
    except ZeroDivisionError as error: return str(error)
def swap(fs): fs.reverse()
def without(xs, kind): return [x for x in xs if not isinstance(x, kind)]
def same(x): return x
def fails(xs):
    xs.append(2)
    raise ValueError
def ordered():
    from collections import OrderedDict
    return OrderedDict([("a", 1), ("b", 2)])
"""


@pytest.mark.parametrize(
    "tests",
    [
        "xs = [3, 1, 2]; assert sort_it(xs) is None and xs == [1, 2, 3]",
        "a = [1]; b = [a, {}]; deep(b); assert a == [1, 9] and b[1] == {'k': 1} and b[0] is a",
        "d = {'a': 1}; clear(d); assert d == {}",
        "b = bytearray(b'a'); extend(b); assert b == bytearray(b'axy')",
        "assert numbers(3) == range(3) and list(numbers(3)) == [0, 1, 2] and len(numbers(10**12)) == 10**12",
        "import decimal, fractions; assert exact() == (decimal.Decimal('2.10'), fractions.Fraction(1, 3))",
        "assert list(squares(4)) == [0, 1, 4, 9] and 9 in squares(4) and sorted(squares(3)) == [0, 1, 4]",
        "g = squares(2); assert (next(g), next(g), next(g, 'none left')) == (0, 1, 'none left')",
        "assert apply(lambda x: x + 1, [1, 2]) == [2, 3] and apply(str, [1]) == ['1'] and apply(len, ['ab']) == [2]",
        "assert compose(lambda x: x * 2, lambda x: x + 1)(3) == 8",
        "def f(x): return twice(lambda y: y + x)\nassert twice(lambda y: y * y) == 16 and f(3) == 8",
        "assert twice(lambda x: twice(lambda y: x + y)) == 14",  # a call within a call within a call
        "assert first(iter([7, 8])) == 7 and total(x for x in [1, 2, 3]) == 6 and list(texts([1, 2])) == ['1', '2']",
        "assert caught(lambda x: 1 // x) == 'integer division or modulo by zero'",
        "fs = [abs, len]; swap(fs); assert fs[0]('ab') == 2 and fs[1](-3) == 3",
        "assert without((4, 5, 7.5, 'a'), int) == [7.5, 'a']",  # a type is itself, as isinstance wants it
        "import functools; assert apply(str.lower, ['A']) == ['a'] and apply(functools.partial(pow, 2), [3]) == [8]",
        "steps = iter([1, 2]); assert same(steps) is steps and same(len) is len",
        "xs = [1]\ntry: fails(xs)\nexcept ValueError: pass\nassert xs == [1, 2]",
        "from collections import OrderedDict as O; assert ordered() == O(a=1, b=2) != O(b=2, a=1)",
    ],
)
def test_what_a_right_program_takes_and_gives_crosses(tests):
    """As where program and tests are one process: the same tests pass with the functions themselves."""
    together: dict = {}
    exec(CROSSING, together)
    exec(tests, together)
    assert sandbox.run(CROSSING, tests).passed
    broken = CROSSING.replace("return", "return None and").replace("xs.sort()", "xs.pop()")
    broken = broken.replace("d.clear()", "d").replace("append(9)", "append(8)").replace("b'xy'", "b'xz'")
    broken = broken.replace('b"xy"', 'b"xz"').replace("i * i", "i + 7").replace("fs.reverse()", "fs.pop()")
    broken = broken.replace("append(2)", "append(3)")
    assert sandbox.run(broken, tests).status == "failed"


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        # a forged reply cannot make of the test's list another kind of thing, nor call what it was not given
        ("import os, json\ndef f(xs):\n    for fd in range(3, 32):\n        try: os.write(fd, json.dumps("
         '{"value": "1", "arguments": json.dumps({"tuple": [{"tuple": [7]}, {"dict": []}]})}).encode() + b"\\n")\n'
         "        except OSError: pass\n", "assert f([1]) == 1"),
        ("import os, json\ndef f(xs):\n    for fd in range(3, 32):\n        try: os.write(fd, json.dumps("
         '{"back": "!7", "arguments": "[]"}).encode() + b"\\n")\n        except OSError: pass\n', "assert f([1]) == 1"),
        ("def f():\n    raise StopIteration", "for _ in [0]:\n    assert f() == 1"),
        ("def f(g):\n    while True: g()", "f(lambda: 1)"),
        ("def f():\n    while True: yield 1", "list(f())"),
    ],
    ids=["another kind", "what was not lent", "end of a loop", "callbacks for ever", "items for ever"],
)  # fmt: skip
def test_crossing_opens_no_door(program, tests):
    assert sandbox.run(program, tests, limits=QUICK).status in ("failed", "timeout", "memory")


REFUSED = ("PermissionError", "FileNotFoundError")  # not to be read; in a root of its own, not there


@pytest.mark.parametrize("name", ["site-packages", "", "site-packages/README.txt"])
def test_of_python_s_folder_the_library_alone_can_be_read(name):
    import sysconfig

    folder = os.path.join(sysconfig.get_path("stdlib"), name)
    read = f"os.listdir({folder!r}) if os.path.isdir({folder!r}) else open({folder!r}).read()"
    code = f"import os\ndef f():\n    return {read}"
    assert any(no in run(code, ("f()", [])).detail for no in REFUSED) or not os.path.exists(folder)
    read = "def f():\n    import json, decimal, sqlite3, ssl, zoneinfo, xml.dom.minidom, email.mime.text\n    return 1"
    assert run(read, ("f()", 1)).passed


@pytest.mark.parametrize("path", ["/usr/lib", "/lib", "/etc", "/usr/lib/os-release", "/etc/passwd", "/usr/share"])
def test_of_the_system_the_loader_s_files_alone_can_be_read(path):
    code = f"import os\ndef f():\n    return os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read()"
    assert any(no in run(code, ("f()", [])).detail for no in REFUSED)


# ---------------------------------------------------------------------------------------- a root of its own
ROOMS = Path(sandbox.__file__).parent
MOVED = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import rooms
folder, library, hidden, files, links = json.loads(sys.argv[2])
moved = rooms.move_in(folder, library, hidden, files, links)
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__
print(json.dumps([moved, [os.path.exists(p) for p in sys.argv[3:]], [read(p) for p in files + [l for l, _ in links]]]))
"""


def moved(folder, library, hidden, files, links, *asked: str):
    """What is seen after :func:`eval.sandbox.rooms.move_in`, in a process of its own: whether it moved, whether what is
    ``asked`` for exists, and what files and links hold."""
    job = json.dumps([str(folder), str(library), hidden, [str(f) for f in files], [[str(a), b] for a, b in links]])
    command = [sys.executable, "-c", MOVED, str(ROOMS), job, *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def a_system_of_toys(tmp_path) -> dict:
    """A library with a package that was installed into it, a compiled module that is a linked file, too, and a library
    elsewhere with its link."""
    library, elsewhere, folder = tmp_path / "lib", tmp_path / "usr", tmp_path / "program"
    for path in (library / "site-packages", library / "lib-dynload", elsewhere, folder):
        path.mkdir(parents=True)
    (library / "os.py").write_text("os")
    (library / "lib-dynload" / "a.so").write_text("compiled")
    (library / "site-packages" / "secret.py").write_text("secret")
    (elsewhere / "z.so.1.2").write_text("z")
    (elsewhere / "other.so").write_text("other")
    (folder / "mine").write_text("mine")
    files = [library / "lib-dynload" / "a.so", elsewhere / "z.so.1.2"]
    links = [(elsewhere / "z.so.1", "z.so.1.2"), (library / "lib-dynload" / "b.so", "a.so")]
    return {"folder": folder, "library": library, "hidden": ["site-packages"], "files": files, "links": links}


def holds(tmp_path) -> dict[str, str]:
    return {str(f.relative_to(tmp_path)): f.read_text() for f in sorted(tmp_path.rglob("*")) if f.is_file()}


def a_root_of_its_own() -> bool:
    """Whether this system allows one, by asking it (some containers do not)."""
    code = "import ctypes\nlibc, number = ctypes.CDLL(None), ctypes.c_ulong\nprint(libc.unshare(0x00020000)"
    code += " or libc.mount(b'none', b'/', None, number(16384 | 1 << 18), None)"  # ours alone
    code += f" or libc.mount(b'tmpfs', {tempfile.gettempdir().encode()!r}, b'tmpfs', number(0), None))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"


where_roots_are_allowed = pytest.mark.skipif(
    os.geteuid() != 0 or not a_root_of_its_own(),
    reason="NOT TESTED: only root with CAP_SYS_ADMIN has mounts of its own",
)


@where_roots_are_allowed
def test_in_a_root_of_its_own_nothing_else_is_there_and_no_real_file_is_touched(tmp_path):
    toys = a_system_of_toys(tmp_path)
    before = holds(tmp_path)
    asked = [toys["library"] / "os.py", toys["folder"] / "mine", toys["library"] / "site-packages" / "secret.py"]
    asked += [
        tmp_path / "usr" / "other.so",
        Path("/etc/passwd"),
        Path("/proc/self"),
        Path("/bin/sh"),
        Path("/dev/null"),
    ]
    found, there, contents = moved(*toys.values(), *map(str, asked))
    assert found and there == [True, True, False, False, False, False, False, False]
    assert contents == ["compiled", "z", "z", "FileNotFoundError"]  # no link is made below the library
    assert holds(tmp_path) == before


@where_roots_are_allowed
def test_a_root_that_cannot_be_finished_leaves_everything_as_it_was(tmp_path):
    toys = a_system_of_toys(tmp_path)
    before = holds(tmp_path)
    toys["files"].append(tmp_path / "usr" / "there-is-none.so")
    found, there, contents = moved(*toys.values(), "/etc/passwd", str(toys["folder"] / "mine"))
    assert not found and there == [True, True] and contents[:2] == ["compiled", "z"]
    assert holds(tmp_path) == before


SEEN = """
import os
def f(path):
    try:
        return os.stat(path).st_size >= 0
    except FileNotFoundError:
        return False
"""
WALK = """
import os
def f():
    seen = []
    for fd in range(64):
        for up in ("..", "../..", "../../../.."):
            try:
                os.stat(f"{up}/etc/passwd", dir_fd=fd)
                seen.append(fd)
            except OSError:
                pass
    return seen
"""


@where_roots_are_allowed
def test_a_program_does_not_learn_that_a_file_is_there(folder):
    (folder / "secret").write_text("x")
    outside = [str(folder / "secret"), "/etc/passwd", "/proc/self/status", "/usr/bin/env", str(ROOT)]
    assert run(SEEN, *((f"f({path!r})", False) for path in outside), ("f(os.__file__)", True)).passed
    # not by walking back from what is open, either
    assert run(WALK, ("f()", [])).passed


@an_ordinary_user
def test_an_ordinary_user_s_program_does_not_learn_it_either():
    if BELOW_ROOT:
        pytest.skip("NOT TESTED: no ordinary user can walk to this Python, which a root folder of its own would show")
    allowed = "import ctypes; print(ctypes.CDLL(None).unshare(0x10020000))"
    if in_a_process(as_user=True, code=allowed) != "0":
        pytest.skip("NOT TESTED: this system gives ordinary users no namespaces")
    calls = [(f"f({str(ROOT)!r})", False)]
    code = f"from eval import sandbox\nprint(sandbox.run({SEEN!r}, {calls!r}).status)"
    assert in_a_process(as_user=True, code=code) == "passed"


def test_where_a_root_is_forbidden_programs_may_learn_it_and_no_more():
    """What SECURITY.md says of such systems."""
    code = "import errno\nfrom eval import sandbox\nfrom eval.sandbox import seccomp\n"
    code += f"seccomp.refuse({{{UNSHARE[os.uname().machine]}: errno.EPERM}})\n"
    code += f"print(sandbox.run({SEEN!r}, [('f(\\'/etc/passwd\\')', True)]).status)"
    assert in_a_process(code=code) == "passed"
