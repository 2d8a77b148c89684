"""What a store must live through: kills, crowds, full disks, folders that cannot be written, forks.

The programs run in processes of their own, which import once and fork: a hundred interpreters would take minutes.
"""

import os
import shutil
import subprocess

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

COMMON = """
import hashlib, logging, os, random, signal, sys, time
import zstandard
from kompakt.compressor.store.sqlite import SQLiteStore
from kompakt.compressor.store import tiered
from kompakt.compressor.store.tiered import TieredStore

class Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []
    def emit(self, record):
        self.lines.append(record.getMessage())

warnings = Warnings()
logging.getLogger("kompakt").addHandler(warnings)

def key(*numbers):
    return hashlib.sha256(repr(numbers).encode()).digest()

def value(key):
    return random.Random(key).randbytes(1 + key[0] * 20)

def child(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)

def wait(*pids):
    for pid in pids:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status
"""

KILLS = """
path, rounds = sys.argv[1], int(sys.argv[2])
chance = random.Random(0)
acknowledged = []
for number in range(rounds):
    reader, writer = os.pipe()

    def work():
        store = SQLiteStore(path) if number % 2 else TieredStore(SQLiteStore(path))
        for batch in range(100_000):
            keys = [key(number, batch, n) for n in range(1 + batch % 7)]
            store.put_many({key: value(key) for key in keys})
            os.write(writer, batch.to_bytes(4, "big"))

    pid = child(work)
    os.close(writer)
    told = os.read(reader, 4)
    assert told, "the writer died by itself"
    time.sleep(chance.random() * 0.03)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(reader, 1 << 16):
        told += more
    os.close(reader)
    acknowledged.append(len(told) // 4)

    store = SQLiteStore(path)
    assert store.check() == [], store.check()
    opened = TieredStore(store) if number % 2 == 0 else store
    for batch in range(acknowledged[-1]):
        keys = [key(number, batch, n) for n in range(1 + batch % 7)]
        assert opened.get_many(keys) == [value(key) for key in keys], (number, batch)
    # the batch that was cut off is there as a whole or not at all
    keys = [key(number, acknowledged[-1], n) for n in range(1 + acknowledged[-1] % 7)]
    assert opened.get_many(keys) in ([None] * len(keys), [value(key) for key in keys])
    opened.close()

final = SQLiteStore(path)
for number, batches in enumerate(acknowledged):
    keys = [key(number, batch, n) for batch in range(batches) for n in range(1 + batch % 7)]
    assert None not in final.get_many(keys)
assert not warnings.lines, warnings.lines
final.close()
print(sum(acknowledged))
"""


@needs_fork
@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_that_was_acknowledged(run_python, tmp_path):
    ran = run_python(COMMON + KILLS, tmp_path / "store.sqlite", 100)
    assert int(ran.stdout) > 200


@needs_fork
def test_some_kills_lose_nothing_that_was_acknowledged(run_python, tmp_path):
    run_python(COMMON + KILLS, tmp_path / "store.sqlite", 8)


CROWD = """
path, rounds, batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(rounds):
    if os.path.exists(path):
        os.unlink(path)
    reader, writer = os.pipe()

    def work(own):
        os.close(writer)
        os.read(reader, 1)  # until the parent closes it: all begin at once
        bare = SQLiteStore(path)
        store = TieredStore(bare) if own % 2 else bare
        chance = random.Random(own)
        for batch in range(batches):
            keys = [key(own % 2, own, batch, n) for n in range(4)]
            store.put_many({key: value(key) for key in keys})
            if batch % 4 == own % 4:
                assert store.collect_garbage() == 0
            kind = own % 2
            others = [key(kind, other, chance.randrange(batches), chance.randrange(4)) for other in range(kind, 8, 2)]
            for name, found in zip(others, store.get_many(others)):
                assert found in (None, value(name))
            assert store.get_many(keys) == [value(key) for key in keys]
        store.close()
        assert not warnings.lines, warnings.lines

    pids = [child(lambda: work(own)) for own in range(8)]
    os.close(reader)
    os.close(writer)
    wait(*pids)
    bare = SQLiteStore(path)
    assert bare.check() == []
    assert bare.stats().n_entries == 8 * batches * 4
    for kind, store in ((0, bare), (1, TieredStore(bare))):
        keys = [key(kind, own, batch, n) for own in range(kind, 8, 2) for batch in range(batches) for n in range(4)]
        assert store.get_many(keys) == [value(key) for key in keys]
    bare.close()
"""


@needs_fork
def test_eight_processes_make_one_file_at_once(run_python, tmp_path):
    run_python(COMMON + CROWD, tmp_path / "store.sqlite", 6, 1)


@needs_fork
@pytest.mark.slow
def test_eight_processes_write_and_read_one_file_at_once(run_python, tmp_path):
    run_python(COMMON + CROWD, tmp_path / "store.sqlite", 2, 60)


FORKS = """
import threading
path = sys.argv[1]
bare = SQLiteStore(path)
store = TieredStore(bare)
first = [key(0, n) for n in range(200)]
store.put_many({name: value(name) for name in first})
is_over = threading.Event()

def hammer():
    # holds the locks most of the time, so that forks happen while they are held
    while not is_over.is_set():
        store.get_many(first)
        bare.get_many(first[:20])

def hammer_memory():
    while not is_over.is_set():
        store.front.get_many(20 * first)

threads = [threading.Thread(target=work) for work in (hammer, hammer, hammer_memory)]
for thread in threads:
    thread.start()

def work(number):
    signal.alarm(60)  # a lock that nobody gives back
    for store_ in (store, bare):
        keys = [key(number, store_ is bare, n) for n in range(10)]
        store_.put_many({name: value(name) for name in keys})
        assert store_.get_many(keys) == [value(name) for name in keys]
    assert store.get_many(first) == [value(name) for name in first]
    store.close()
    assert store.get_many(keys[:1]) == [None]  # not sealed, and so damaged; but no failure
    if number % 2:
        sys.exit(0)

for number in range(1, 13):
    pid = os.fork()
    if pid == 0:
        try:
            work(number)
        except SystemExit:
            raise
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    wait(pid)
    own = key(number, "parent")
    store.put_many({own: value(own)})
    assert store.get_many([own]) == [value(own)]
is_over.set()
for thread in threads:
    thread.join()
assert bare.check() == []
for number in range(1, 13):
    keys = [key(number, False, n) for n in range(10)]
    assert store.get_many(keys) == [value(name) for name in keys], number
store.close()
"""


@needs_fork
def test_a_store_in_use_may_be_taken_along_into_children(run_python, tmp_path):
    run_python(COMMON + FORKS, tmp_path / "store.sqlite")


FULL = """
path, limit = sys.argv[1], sys.argv[2]
tiered._PAUSE_SECONDS = 0.05
store = TieredStore(SQLiteStore(path))
before = [key(0, n) for n in range(10)]
store.put_many({name: value(name) for name in before})
if limit != "none":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
keys = [key(1, n) for n in range(400)]
for name in keys:
    store.put_many({name: value(name)})
assert len(warnings.lines) == 1, warnings.lines
assert "going on in memory" in warnings.lines[0], warnings.lines
assert store.get_many(keys) == [value(name) for name in keys]
# what was written before it was full is read from the file
other = TieredStore(SQLiteStore(path))
assert other.get_many(before) == [value(name) for name in before]
found = other.get_many(keys)
assert None in found
assert all(value_ in (None, value(name)) for name, value_ in zip(keys, found))
other.close()

if limit == "none":
    os.unlink(sys.argv[3])
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
time.sleep(0.1)
late = key(2)
store.put_many({late: value(late)})
assert len(warnings.lines) == 1, warnings.lines
bare = SQLiteStore(path)
assert bare.get_many([late]) != [None]
assert bare.check() == []
bare.close()
store.close()
"""


def test_beyond_the_largest_file_it_goes_on_in_memory_and_recovers(run_python, tmp_path):
    pytest.importorskip("resource")
    run_python(COMMON + FULL, tmp_path / "store.sqlite", 300_000)


def test_on_a_full_disk_it_goes_on_in_memory_and_recovers(run_python, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    # in a name space of its own, which takes the mount along when the program ends
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=1200k none "{disk}" && exec "$@"', "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    ballast = f"open({str(disk / 'ballast')!r}, 'wb').write(bytes(600_000))\n"
    run_python(COMMON + ballast + FULL, disk / "store.sqlite", "none", disk / "ballast", before=mount)


READ_ONLY = """
folder, case = sys.argv[1], sys.argv[2]
path = folder + "/store.sqlite"
keys = [key(0, n) for n in range(20)]
if case != "none":
    made = TieredStore(SQLiteStore(path))
    made.put_many({name: value(name) for name in keys})
    if case != "killed":
        made.close()
os.chmod(folder, 0o000 if case == "hidden" else 0o555)
for file in os.listdir(folder) if os.geteuid() == 0 or case != "hidden" else []:
    os.chmod(folder + "/" + file, 0o444)
pid = os.fork()
if pid == 0:
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        tiered._PAUSE_SECONDS = 0.05
        from kompakt.compressor.store.places import open_store
        store = open_store(path)
        expected = [value(name) for name in keys] if case in ("there", "killed") else [None] * len(keys)
        for turn in range(3):
            assert store.get_many(keys) == expected
            new = key(1, turn)
            store.put_many({new: value(new)})
            assert store.get_many([new]) == [value(new)]
            time.sleep(0.1)
        assert len(warnings.lines) == 1, warnings.lines
        assert "going on in memory" in warnings.lines[0]
        if case in ("there", "killed"):
            assert "read-only" in warnings.lines[0], warnings.lines
            assert store.stats().n_entries == 20
            from kompakt.compressor.store.maintenance import verify
            assert verify(SQLiteStore(path)).is_sound
        store.close()
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
try:
    wait(pid)
finally:
    os.chmod(folder, 0o755)
assert (case == "none") == (os.listdir(folder) == []), os.listdir(folder)
assert case == "killed" or len(os.listdir(folder)) <= 1, os.listdir(folder)
"""


@needs_fork
@pytest.mark.parametrize("case", ["there", "killed", "none", "hidden"])
def test_in_a_folder_that_cannot_be_written_it_reads_what_is_there_and_warns_once(run_python, tmp_path, case):
    folder = tmp_path / "folder"
    folder.mkdir()
    for parent in (tmp_path, *tmp_path.parents):
        if IS_ROOT and parent.stat().st_mode & 0o005 != 0o005:
            # pytest keeps its folders to the user
            parent.chmod(parent.stat().st_mode | 0o005)
    run_python(COMMON + READ_ONLY, folder, case)
