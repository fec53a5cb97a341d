"""One owner for a run folder: another is refused by name, one that died makes way, wherever it ran."""

import json
import os
import stat
import subprocess
import sys

import pytest
from small_runs import noisy_colours, run

from dp4tl_fast.common import lock
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.lock import LOCK, Owner
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune

HOLD = "import sys; from dp4tl_fast.common.lock import Owner\nwith Owner(sys.argv[1]): print('mine', flush=True); sys.stdin.read()"


def hold(folder):
    """Another process that owns the folder until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    return process


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return noisy_colours(tmp_path_factory.mktemp("data"), "s", (16, 16, 16))


def test_a_second_owner_is_refused_by_name_until_the_first_one_ends(tmp_path):
    other = hold(tmp_path / "r")
    with pytest.raises(UsageError, match=f"still in progress: process {other.pid} on ") as refused, Owner(tmp_path / "r"):
        pass
    assert "\n" not in str(refused.value)
    other.communicate()
    with Owner(tmp_path / "r") as owner:
        owner.check()
    assert not (tmp_path / "r" / LOCK).exists()


def test_an_owner_that_was_killed_makes_way_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_changes", lambda *a: pytest.fail("it ran here: nothing to wait for"))
    other = hold(tmp_path)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead, but its number is still taken
    with Owner(tmp_path):
        pass
    other.communicate()
    other = hold(tmp_path)
    other.kill()
    other.communicate()
    with Owner(tmp_path):
        pass


def elsewhere(path):
    """Make the lock that of a process on another machine."""
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "host": "node7", "boot": "another"}))


def test_an_owner_on_another_machine_is_believed_while_its_lock_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_S", 0.5)
    first = Owner(tmp_path)
    with first:
        elsewhere(tmp_path / LOCK)
        first._me |= {"host": "node7", "boot": "another"}
        real = lock._read
        beats = iter(range(1, 100))

        def read(path):
            first._write(next(beats))  # it beats between two looks
            return real(path)

        monkeypatch.setattr(lock, "_read", read)
        with pytest.raises(UsageError, match=r"still in progress: process \d+ on node7"), Owner(tmp_path):
            pass
        monkeypatch.setattr(lock, "_read", real)
        with Owner(tmp_path) as second:  # it says nothing any more
            second.check()
            with pytest.raises(UsageError, match="taken over by process"):
                first.check()
        (tmp_path / LOCK).write_text("")


def test_half_a_lock_is_nobodys(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_S", 0.2)
    (tmp_path / LOCK).write_text('{"pid": 1')
    with Owner(tmp_path) as owner:
        owner.check()


def test_a_run_is_refused_beside_a_live_one_and_says_how_slurm_is_meant(data, tmp_path, monkeypatch):
    other = hold(tmp_path / "r")
    before = (tmp_path / "r" / LOCK).read_text()
    for resume in (False, True):
        with pytest.raises(UsageError, match=f"process {other.pid} on .*Wait until it ends"):
            run(data, tmp_path / "r", resume=resume)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(UsageError, match=r"Slurm started 2 tasks.*srun torchrun"):
        run(data, tmp_path / "r")
    assert [p.name for p in (tmp_path / "r").iterdir()] == [LOCK]
    assert json.loads(before)["pid"] == json.loads((tmp_path / "r" / LOCK).read_text())["pid"]
    other.communicate()
    run(data, tmp_path / "r")
    assert not (tmp_path / "r" / LOCK).exists()


def test_a_surrogate_in_training_is_refused_to_others(data, tmp_path):
    other = hold(tmp_path / "sur")
    with pytest.raises(UsageError, match=f"process {other.pid} on "):
        prune(PruneConfig(source=str(data), target=[str(data)], out=str(tmp_path / "o.json"), keep="2",
                          train_surrogate=str(tmp_path / "sur"), arch="small-4", size=16))  # fmt: skip
    other.communicate()


def test_a_run_that_is_refused_leaves_no_folder(data, tmp_path):
    with pytest.raises(UsageError, match="larger than the 48"):
        run(data, tmp_path / "below/r", batch_size=64)
    assert not (tmp_path / "below").exists()


def test_a_complete_run_is_read_without_owning_its_folder(data, tmp_path):
    done = run(data, tmp_path / "r", epochs=1)
    other = hold(tmp_path / "r")
    assert run(data, tmp_path / "r", epochs=1, resume=True) == done
    other.communicate()


def test_a_process_number_that_is_used_again_is_another_process():
    assert lock._started(os.getpid()) and lock._started(os.getpid()) != lock._started(1)
    assert lock._started(2**22 + 5) == ""


def test_everyone_may_read_who_owns_a_folder(tmp_path):
    """Whatever the umask: a lock that another user cannot read would look like that of a dead one."""
    before = os.umask(0o077)
    try:
        with Owner(tmp_path / "r"):
            assert stat.S_IMODE((tmp_path / "r" / LOCK).stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_a_forked_child_gives_no_folder_back(tmp_path):
    with Owner(tmp_path) as owner:
        if (child := os.fork()) == 0:
            owner.__exit__(None, None, None)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        owner.check()


def test_an_owner_that_was_about_to_say_who_it_is_is_named(tmp_path, monkeypatch):
    """Of two that begin at once, one finds the other's lock made and still empty."""
    (tmp_path / LOCK).touch()

    def written_meanwhile(path, raw):
        assert raw == b""
        path.write_text(json.dumps({"pid": 4711, "host": "node7"}))
        return True

    monkeypatch.setattr(lock, "_changes", written_meanwhile)
    with pytest.raises(UsageError, match="still in progress: process 4711 on node7"), Owner(tmp_path):
        pass
