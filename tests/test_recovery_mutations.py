"""Every rule that recovery rests on is held up by a test: without the rule, real clusters lose or double something.

As in `test_mutations`, each mutation is a small change to a copy of the package, and the test that holds up the rule
must fail on the copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_mutations import CONFTEST, ROOT, Mutation, mutated_source

pytestmark = [pytest.mark.slow, pytest.mark.processes]

RECOVERY = "processes/test_recovery.py::test_a_death_at_a_named_moment_costs_nothing"
EDGES = "processes/test_recovery_edges.py::"
STORE = "processes/test_recovery_store.py::"

MUTATIONS = [
    Mutation(
        "what is in flight is kept",
        "core/part.py",
        "src: list(_blocks(each.payloads)) for src, each in local.channels.items() if each.payloads}",
        "src: list(_blocks(each.payloads)) for src, each in local.channels.items() if not src}",
        f"{RECOVERY}[mid-handler-fork]",
    ),
    Mutation(
        "a restored inbox begins filled",
        "core/nodecore.py",
        "received=restored.received, inboxes=inboxes\n",
        "received=restored.received, inboxes={}\n",
        f"{EDGES}test_what_waits_at_a_restored_node_is_in_the_next_cut[fork]",
    ),
    Mutation(
        "records of a dead incarnation are put out anew and not released",
        "runtime/outputs.py",
        "        self._pending.clear()\n",
        "        pass\n",
        f"{STORE}test_a_store_that_fails_for_a_while_costs_what_is_taken_meanwhile[ENOSPC]",
    ),
    Mutation(
        "records are released when what covers them is kept",
        "runtime/commits.py",
        "        made = self._store.commit(manifest, released, self._seal)\n",
        "        self._outputs.release(released)\n        made = self._store.commit(manifest, released, self._seal)\n",
        f"{STORE}test_a_store_that_fails_for_a_while_costs_what_is_taken_meanwhile[ENOSPC]",
    ),
    Mutation(
        "a recovery point holds the records that it releases",
        "runtime/commits.py",
        "self._store.commit(manifest, released, self._seal)",
        "self._store.commit(manifest, (), self._seal)",
        f"{STORE}test_outputs_that_cannot_be_written_end_the_cluster",
    ),
    Mutation(
        "nobody handles a message before the initial cut is kept",
        "runtime/recovering.py",
        "            self._initial = self._upcoming()\n",
        "            self._go()\n            self._initial = self._upcoming()\n",
        f"{RECOVERY}[after-go-first-fork]",
    ),
    Mutation(
        "a death fences all",
        "runtime/incarnation.py",
        "        for node in self.nodes:\n            self.signal(node, signal.SIGKILL)\n        deadline",
        "        return\n        deadline",
        f"{EDGES}test_an_idle_cluster_notices_a_death_and_goes_on[fork]",
    ),
    Mutation(
        "each generation of nodes has a number of its own",
        "runtime/recovering.py",
        "            self._spawn(place.incarnation, place, (manifest,",
        "            self._spawn(0, place, (manifest,",
        f"{EDGES}test_deaths_at_once_are_one_recovery[victims0]",
    ),
    Mutation(
        "who is fenced is not attended to",
        "runtime/pump.py",
        "            if self._watched.get(watched.fd) is watched:\n",
        "            if True:\n",
        f"{EDGES}test_deaths_at_once_are_one_recovery[victims0]",
    ),
    Mutation(
        "a last cut that a death takes along is not the end",
        "runtime/recovering.py",
        "        self._last = None\n        self._snapshots.lose_all(",
        "        self._snapshots.lose_all(",
        f"{RECOVERY}[last-record-fork]",
    ),
    Mutation(
        "a cut without a number is known before it is abandoned",
        "runtime/recovering.py",
        "            self._last = self._upcoming()\n            self._snapshots.trigger(",
        "            self._last = self._snapshots.trigger(",
        f"{STORE}test_a_last_cut_that_cannot_be_kept_is_told_and_the_end_comes_all_the_same[1]",
    ),
    Mutation(
        "a start that fails is not tried again",
        "runtime/recovering.py",
        'self._insisted or self.state == "starting":',
        "self._insisted:",
        f"{EDGES}test_who_dies_on_the_way_back_at_the_start_of_a_run_ends_it_too[kill9]",
    ),
    Mutation(
        "a store that is full is asked again",
        "runtime/recovering.py",
        "            self._recover_or_end(error, counts=True)\n        except (MpsnapError",
        "            self._end(error)\n        except (MpsnapError",
        f"{STORE}test_a_store_that_is_full_when_the_cluster_recovers_is_asked_again",
    ),
    Mutation(
        "a lost proof of termination is sought again",
        "runtime/snapshots.py",
        "        if self._probing and not self._is_probing():\n",
        "        if False:\n",
        f"{STORE}test_a_cluster_that_ends_by_itself_does_so_though_its_store_fails",
    ),
    Mutation(
        "the end does not wait for snapshots that nobody will see",
        "runtime/recovering.py",
        "            self._snapshots.begin_no_more()\n",
        "            pass\n",
        f"{EDGES}test_a_snapshot_that_begins_when_the_end_is_asked_for_is_given_up",
    ),
    Mutation(
        "who stands still on the way back counts as dead",
        "runtime/supervisor.py",
        "Readiness(incarnation, self._deadlines, self._fail)",
        "Readiness(incarnation, self._deadlines, self._end)",
        f"{EDGES}test_who_gets_no_further_on_the_way_back_counts_as_dead",
    ),
    Mutation(
        "an unkillable process is told",
        "runtime/supervisor.py",
        "        except ClusterError as unkillable:\n            self.error = error or unkillable\n",
        "        finally:\n            pass\n",
        f"{EDGES}test_a_process_that_no_signal_ends_is_the_end",
    ),
    Mutation(
        "who has halted is not blamed for not stopping",
        "runtime/recovering.py",
        "        return set(self.topology.nodes) - self._halted\n",
        "        return super()._unstopped()\n",
        f"{EDGES}test_who_does_not_stop_is_named_and_what_is_kept_stays",
    ),
]


def run_on_a_copy(folder: Path, tests: list[str], mutation: Mutation | None = None) -> tuple[int, str]:
    """Return how pytest ended on a copy of the package, and what it said."""
    for name in ("mpsnap", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden", "scenarios"))
    if mutation is not None:
        mutated = folder / "mpsnap" / mutation.file
        mutated.write_text(mutated_source(mutated, mutation))
    # Whoever waits in vain waits shorter here.
    for file, constant, less in (
        ("tests/processes/drill.py", "DRILL_SECONDS = 30.0", "DRILL_SECONDS = 8.0"),
        ("mpsnap/runtime/incarnation.py", "FENCE_SECONDS = 5.0", "FENCE_SECONDS = 1.0"),
    ):
        source = (folder / file).read_text()
        assert source.count(constant) == 1
        (folder / file).write_text(source.replace(constant, less))
    with (folder / "tests" / "conftest.py").open("a") as conftest:
        conftest.write(CONFTEST.replace("from pathlib import Path\n", "from pathlib import Path  # noqa\n"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-c", os.devnull, *tests],
        cwd=folder / "tests",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests")]),
            "PYTEST_ADDOPTS": "--rootdir=" + str(folder),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr


def test_each_rule_stands_in_the_code_as_its_mutation_says() -> None:
    """All of them, also where only some are tried: what is not found there could not be broken."""
    for mutation in MUTATIONS:
        mutated_source(ROOT / "mpsnap" / mutation.file, mutation)


@pytest.mark.timeout(110)
def test_an_unchanged_copy_passes(tmp_path: Path) -> None:
    """So that a failure below comes from the mutation and not from the copying."""
    status, said = run_on_a_copy(tmp_path, sorted({mutation.test for mutation in MUTATIONS}))
    assert status == pytest.ExitCode.OK, said


@pytest.mark.timeout(110)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule.replace(" ", "-"))
def test_without_this_rule_its_test_fails(mutation: Mutation, tmp_path: Path) -> None:
    """It fails as a test does; a copy that cannot even be imported would prove nothing."""
    status, said = run_on_a_copy(tmp_path, [mutation.test], mutation)
    assert status == pytest.ExitCode.TESTS_FAILED, said
    assert "1 failed" in said, said
