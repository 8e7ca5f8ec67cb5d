"""Every safety rule is held up by a test: take the rule out of the code, and the tests fail.

A mutation is a small change to a copy of the package that breaks one rule, each a mistake that somebody has made or
could make. The test that holds up the rule runs on the copy and must fail; on an unchanged copy they all pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

#: Refuses to test anything but the copy.
CONFTEST = """
from pathlib import Path

import mpsnap

assert Path(mpsnap.__file__).parent.parent == Path(__file__).parent.parent, mpsnap.__file__
"""


class Mutation(NamedTuple):
    """Exchange `old`, which stands in `file` exactly once, for `new`; then `test` must fail."""

    rule: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    Mutation(
        "that nothing is in flight is proven by the counts",
        "snapshot.py",
        "                if [sent[src][dst] for src in received] != [*received.values()]:\n",
        "                if False:\n",
        "test_snapshot.py::test_that_all_channels_are_empty_is_not_taken_on_trust",
    ),
    Mutation(
        "that nothing is in flight is proven by the counts before the parts are looked at",
        "emptycut.py",
        "\n            and self._sent(fields) == self._received(fields)\n",
        "\n",
        "test_emptycut.py::test_one_message_more_or_less_anywhere_is_seen",
    ),
    Mutation(
        "a part is that of its node in this snapshot before its counts are compared",
        "emptycut.py",
        "            self._begins(fields) == tuple(map(add, heads, self._names))\n            and ",
        "            ",
        "test_emptycut.py::test_what_is_not_the_whole_of_this_cut_is_not_taken_for_it",
    ),
    Mutation(
        "a cut is complete before its counts are compared",
        "emptycut.py",
        "        if parts.keys() != self._nodes.keys():\n",
        "        if not parts.keys() >= self._nodes.keys():\n",
        "test_emptycut.py::test_what_is_not_the_whole_of_this_cut_is_not_taken_for_it",
    ),
    Mutation(
        "which messages are next is proven too where nothing is in flight",
        "protocol.py",
        "isinstance(self.channels, EmptyChannels) and self.channels.received is self.received",
        "isinstance(self.channels, EmptyChannels)",
        "test_snapshot.py::test_that_all_channels_are_empty_is_not_taken_on_trust",
    ),
    Mutation(
        "what arrives between the record and the marker is in flight",
        "protocol.py",
        "                recording.add(src, payloads)\n",
        "                pass\n",
        "test_paper.py::test_every_other_channel_is_what_came_between_the_record_and_its_marker",
    ),
    Mutation(
        "it is also if it is taken at once",
        "protocol.py",
        "                recording.add(src, (payload,))\n",
        "                pass\n",
        "test_protocol.py::test_receive_and_take_in_one_step_is_the_same_as_one_after_the_other",
    ),
    Mutation(
        "what was seen and not taken at the record is in flight",
        "protocol.py",
        "                recording.add(src, *inbox.batches())\n",
        "                pass\n",
        "test_protocol.py::test_what_was_seen_and_not_taken_is_in_flight",
    ),
    Mutation(
        "what arrives behind the marker is not in flight",
        "protocol.py",
        "            if src in recording.open:\n                recording.add(src, payloads)",
        "            if True:\n                recording.add(src, payloads)",
        "test_protocol.py::test_a_channel_is_closed_by_its_marker_while_others_are_still_open",
    ),
    Mutation(
        "the channel of the first marker is closed by it",
        "protocol.py",
        "        recording.open.discard(closing)\n",
        "",
        "test_protocol.py::test_the_first_marker_is_also_the_last_where_there_is_one_inbound_channel",
    ),
    Mutation(
        "the state is that of the record, not that of the report",
        "protocol.py",
        "LocalSnapshot(self.node, snapshot_id, recording.captured,",
        "LocalSnapshot(self.node, snapshot_id, self._capture(),",
        "test_protocol.py::test_the_state_is_that_of_the_record_whenever_it_is_reported",
    ),
    Mutation(
        "the counts are those of the record, not those of the report",
        "protocol.py",
        "recording.captured, recording.sent, recording.received,",
        "recording.captured, self._all_sent(), self._all_received(),",
        "test_protocol.py::test_the_counts_are_those_of_the_record_whenever_they_are_reported",
    ),
    Mutation(
        "nothing is changed before the capture has succeeded",
        "protocol.py",
        "        captured = self._capture()\n        recording = _Recording(captured,",
        "        recording = self._recordings[snapshot_id] = _Recording(None, {}, {})\n"
        "        captured = self._capture()\n        recording = _Recording(captured,",
        "test_protocol.py::test_a_capture_that_raises_leaves_everything_unchanged",
    ),
    Mutation(
        "a completed snapshot is remembered",
        "protocol.py",
        "        self._finished.add(snapshot_id)\n        channels: ",
        "        channels: ",
        "test_protocol.py::test_a_second_marker_of_a_finished_snapshot_is_ignored",
    ),
    Mutation(
        "an abandoned snapshot is remembered",
        "protocol.py",
        "        self._recordings.pop(snapshot_id, None)\n        self._finished.add(snapshot_id)\n",
        "        self._recordings.pop(snapshot_id, None)\n",
        "test_protocol.py::test_an_abandoned_snapshot_is_not_recorded_any_more",
    ),
    Mutation(
        "items are counted, so that overtaking is noticed",
        "protocol.py",
        "        if got != expected:\n",
        "        if False:\n",
        "test_protocol.py::test_a_swap_on_the_wire_is_noticed",
    ),
    Mutation(
        "messages that are taken at once are counted too",
        "protocol.py",
        "        if self._seen.get(src) != number - 1:\n",
        "        if False:\n",
        "test_protocol.py::test_receive_and_take_never_overtakes_and_never_skips",
    ),
    Mutation(
        "an illegal step changes nothing",
        "protocol.py",
        "        if first != self._seen.get(src, 0) + 1 or src not in self._seen:\n"
        '            self._expect(src, first, "message number", self._seen_or_raise(src) + 1)\n'
        "        is_next = self._put(src, payloads)\n",
        "        expected = self._seen_or_raise(src) + 1\n"
        "        is_next = self._put(src, payloads)\n"
        '        self._expect(src, first, "message number", expected)\n',
        "test_protocol.py::test_an_illegal_step_raises_and_changes_nothing",
    ),
    Mutation(
        "the state is fixed at the record",
        "nodecore.py",
        "        state = self._driver.fix(None if self._cause is None else self._cause[0], encode)\n",
        "        encode(bytes)\n        state = value\n",
        "test_nodecore.py::test_what_was_captured_never_changes",
    ),
    Mutation(
        "a payload is fixed when it is sent",
        "outgoing.py",
        '            return [ENCODED, self._codec.encode(payload, "payload")]\n',
        '            self._codec.encode(payload, "payload")\n            return payload\n',
        "test_nodecore.py::test_a_payload_changed_after_the_send_is_recorded_and_delivered_as_it_was",
    ),
    Mutation(
        "a payload that is laid out as a row is copied",
        "rows.py",
        "    held = value.copy()\n",
        "    held = value\n",
        "test_rows.py::test_what_becomes_of_a_value_after_the_send_does_not_show",
    ),
    Mutation(
        "what is made of a row is a copy too",
        "rows.py",
        "    return dict.copy(held)\n",
        "    return held\n",
        "test_rows.py::test_each_value_that_is_made_of_a_row_is_a_new_one",
    ),
    Mutation(
        "only what cannot change stands in a row",
        "rows.py",
        '    looks += [f"if type({v}) not in NATIVE and not is_fixed({v}): return None" for v in names]\n',
        "",
        "test_rows.py::test_a_value_with_anything_else_in_it_is_left_to_the_codec",
    ),
    Mutation(
        "whatever else an instance holds is refused",
        "rows.py",
        "if type(held) is not dict or len(held) != {len(names)}: return None",
        "",
        "test_rows.py::test_what_the_codec_refuses_is_never_a_row",
    ),
    Mutation(
        "a node records between hooks and never inside one",
        "nodecore.py",
        "        self._wishes.append(snapshot_id)\n",
        "        self.initiate(snapshot_id)\n",
        "test_nodecore.py::test_a_snapshot_begun_in_a_hook_waits_until_the_hook_returns",
    ),
    Mutation(
        "what stands in an outbox is sent",
        "protocol.py",
        "        return self._collected + len(self.payloads)\n",
        "        return self._collected\n",
        "test_protocol.py::test_what_stands_in_an_outbox_is_sent",
    ),
    Mutation(
        "no message is taken between a wish to snapshot and the record",
        "nodecore.py",
        "        self._wishes.append(snapshot_id)\n        self.interrupt()\n",
        "        self._wishes.append(snapshot_id)\n",
        "test_nodecore.py::test_a_snapshot_begun_in_a_row_of_messages_cuts_it_there",
    ),
    Mutation(
        "a node that will be asked again is not passive",
        "nodecore.py",
        "        self._idle_wanted = idle_wanted and not self._finished\n        if self._wishes:\n",
        "        if not self._wishes:\n"
        "            self._idle_wanted = idle_wanted and not self._finished\n"
        "        else:\n",
        "test_nodecore.py::test_a_node_that_will_be_asked_again_is_not_passive_in_a_snapshot_of_its_own",
    ),
    Mutation(
        "a restored inbox holds what was in flight",
        "nodecore.py",
        "received=restored.received, inboxes=inboxes\n",
        "received=restored.received, inboxes={}\n",
        "test_restore.py::test_messages_in_flight_stand_in_the_inbox_and_are_taken_in_order_before_new_ones",
    ),
    Mutation(
        "a restored inbox has its turn",
        "nodecore.py",
        "deque(src for src in self.protocol.inbound if self.protocol.waiting(src))\n",
        "deque()\n",
        "test_restore.py::test_messages_in_flight_stand_in_the_inbox_and_are_taken_in_order_before_new_ones",
    ),
    Mutation(
        "what was sent before the cut is counted",
        "nodecore.py",
        "capture, sent=restored.sent, received",
        "capture, sent={}, received",
        "test_restore.py::test_messages_are_numbered_on_without_a_gap",
    ),
    Mutation(
        "what was received before the cut is counted",
        "nodecore.py",
        "received=restored.received, inboxes=inboxes\n",
        "received={}, inboxes=inboxes\n",
        "test_restore.py::test_messages_are_numbered_on_without_a_gap",
    ),
    Mutation(
        "random numbers go on where the cut was",
        "nodecore.py",
        "        self.random.counter = counter\n",
        "",
        "test_restore.py::test_random_numbers_go_on_whatever_on_start_draws",
    ),
    Mutation(
        "random numbers are those of the seed in the cut",
        "nodecore.py",
        '        object.__setattr__(self._ctx, "random", CounterRandom(seed, counter))\n',
        "",
        "test_restore.py::test_the_generator_of_a_node_is_one_object_from_on_start_on",
    ),
    Mutation(
        "timers are restored",
        "nodecore.py",
        "            for timer in captured.timers:\n",
        "            for timer in captured.timers[:0]:\n",
        "test_restore.py::test_timers_keep_their_remaining_time_their_order_and_their_period",
    ),
    Mutation(
        "timers that are due at once ring in an order that a cut can say",
        "timers.py",
        "            self.push(following, timer.period, timer.method, timer.args)\n",
        "            heapq.heappush(self.heap, timer._replace(due=following))\n",
        "test_restore.py::test_timers_that_will_be_due_at_once_ring_in_the_order_of_the_original",
    ),
    Mutation(
        "records are numbered on",
        "nodecore.py",
        "        self._emitted = captured.emitted\n",
        "",
        "test_restore.py::test_records_are_numbered_on",
    ),
    Mutation(
        "a finished node stays finished",
        "nodecore.py",
        "        self._finished = self._finished or captured.finished\n",
        "",
        "test_restore.py::test_a_finished_node_is_finished_again",
    ),
    Mutation(
        "every channel of a cut is checked",
        "snapshot.py",
        "                if first != taken + 1 or taken + count != sent[src][dst]:\n",
        "                if first != taken + 1:\n",
        "test_snapshot.py::test_verify_finds_the_damage_and_says_where",
    ),
]


def mutated_source(file: Path, mutation: Mutation) -> str:
    """Return what is in a file with the mutation in it."""
    source = file.read_text()
    assert source.count(mutation.old) == 1, f"{file.name}: this must stand there exactly once: {mutation.old!r}"
    return source.replace(mutation.old, mutation.new)


def run_tests_on_a_copy(folder: Path, tests: list[str], mutation: Mutation | None = None) -> tuple[int, str]:
    """Return how pytest ended on a copy of the package, and what it said."""
    shutil.copytree(ROOT / "mpsnap", folder / "mpsnap", ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is not None:
        mutated = folder / "mpsnap" / "core" / mutation.file
        mutated.write_text(mutated_source(mutated, mutation))
    (folder / "tests").mkdir()
    (folder / "tests" / "conftest.py").write_text(CONFTEST)
    for name in {"harness.py", *(test.partition("::")[0] for test in tests)}:
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *tests],
        cwd=folder / "tests",
        env={**os.environ, "PYTHONPATH": str(folder), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr


def test_each_rule_stands_in_the_code_as_its_mutation_says() -> None:
    """All of them, also where only some are tried: what is not found there could not be broken."""
    for mutation in MUTATIONS:
        mutated_source(ROOT / "mpsnap" / "core" / mutation.file, mutation)


def test_an_unchanged_copy_passes(tmp_path: Path) -> None:
    """So that a failure below comes from the mutation and not from the copying."""
    status, said = run_tests_on_a_copy(tmp_path, sorted({mutation.test for mutation in MUTATIONS}))
    assert status == pytest.ExitCode.OK, said


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule.replace(" ", "-"))
def test_without_this_rule_its_test_fails(mutation: Mutation, tmp_path: Path) -> None:
    """It fails as a test does; a copy that cannot even be imported would prove nothing."""
    status, said = run_tests_on_a_copy(tmp_path, [mutation.test], mutation)
    assert status == pytest.ExitCode.TESTS_FAILED, said
    assert "1 failed" in said, said
