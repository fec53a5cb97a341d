"""Memory that is freed can stay for what is allocated next."""

import subprocess
import sys

ROUNDS = """
import resource, threading
from dp4tl_fast.kernels._native import keep_freed_memory
keep_freed_memory()
def work():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        held = [bytes(bytearray(150_000)) for _ in range(50)]  # one chunk's payloads, freed before the next chunk
        del held
        print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_a_thread_maps_the_memory_of_a_chunk_once():
    """Without ``keep_freed_memory`` every round has as many page faults as the first."""
    ran = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True)
    first, *rest = map(int, ran.stdout.split())
    assert first >= 50 * 150_000 // 4096 and max(rest) < first / 10
