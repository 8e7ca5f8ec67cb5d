"""The benchmarks' harness and report, without measuring anything."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots, report, sweep
from benchmarks.__main__ import MODULES, README, main
from benchmarks.measure import Benchmark, Row, Scale, absent, measure, options, ratio, row, scale_of, table
from benchmarks.report import NOTHING, Report, filled, markdown

FAST = row("fast", [3.0, 1.0, 2.0], floor=1.5, goal=4)
SLOW = row("slow", [30.0], unit="ms", sense="at most", floor=20, goal=10, notes={"messages/s": 12345.6, "rounds": 1000})
LACKING = absent("no peer", "it is not installed", floor=2)


def good(scale: Scale) -> Iterable[Row]:
    return [FAST, LACKING]


def bad(scale: Scale) -> Iterator[Row]:
    yield SLOW
    raise AssertionError("a message was lost")


def stopped(scale: Scale) -> Iterator[Row]:
    yield SLOW
    raise KeyboardInterrupt


def run(folder: Path, *arguments: str, **modules: Sequence[Benchmark]) -> int:
    return main(arguments, modules or {"one": [good], "two": [good]}, folder / "results", folder / "README.md")


def strict(text: str) -> Any:
    """Read JSON that knows no NaN and no Infinity."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "nothing is drawn here")


# ------------------------------------------------------------------- harness


def test_contenders_take_turns_and_each_round_begins_with_another() -> None:
    calls: list[str] = []
    told: list[str] = []

    def contender(name: str) -> str:
        calls.append(name)
        return name.upper()

    scale = Scale(rounds=4, told=told.append)
    turns = scale.turns("three", *(lambda name=name: contender(name) for name in "abc"))
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert turns == [("A", "B", "C")] * 4
    assert told[0] == "three, round 1 of 4"
    assert told[-1] == "three, round 4 of 4"


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """And not the ratio of the medians, which would be 2 here."""
    found = ratio("r", [(10, 1), (2, 2), (3, 1)], unit="x")
    assert (found.value, found.least, found.most, found.rounds) == (3, 1, 10, 3)


def test_a_row_meets_a_bound_on_its_own_side() -> None:
    assert [FAST.meets(bound) for bound in (1.5, 2, 4, None)] == [True, True, False, None]
    assert [SLOW.meets(bound) for bound in (40, 30, 20, None)] == [True, True, False, None]
    assert LACKING.meets(2) is None
    assert replace(FAST, failed="a message was lost").meets(1.5) is None


def test_a_row_becomes_strict_json_and_back() -> None:
    odd = replace(LACKING, notes={"why": "so", "limit": math.inf})
    for each in (FAST, SLOW, odd):
        plain = strict(report.as_json(each.plain()))
        assert Row.of(plain).plain() == each.plain()
    assert odd.plain()["value"] is None
    assert odd.plain()["notes"] == {"why": "so", "limit": None}
    assert math.isnan(Row.of(LACKING.plain()).value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.as_json(math.nan)


def test_a_table_says_what_holds_and_what_is_missing() -> None:
    lines = table([FAST, SLOW, LACKING, replace(FAST, name="broken", failed="a message was lost")]).splitlines()[2:]
    parts = [re.split(r"\s{2,}", line.rstrip()) for line in lines]
    assert parts == [
        ["fast", "2 x", "1 to 3", "at least 1.5", "yes", "4", "NO"],
        ["slow", "30 ms", "30 to 30", "at most 20", "NO", "10", "NO", "messages/s 12,346, rounds 1,000"],
        ["no peer", "not measured", "at least 2", "why it is not installed"],
        ["broken", "failed", "1 to 3", "at least 1.5", "4", "a message was lost"],
    ]


def test_only_chooses_by_name_and_quick_is_short() -> None:
    assert measure([good, bad], Scale(), only="oo") == [FAST, LACKING]
    parser = options("benchmarks", "")
    assert scale_of(parser.parse_args(["--quick", "--rounds", "7"])) == Scale(7, 0.05, True, told=Scale.told)
    for wrong in (["--rounds", "0"], ["--seconds", "-1"], ["--seconds", "nan"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)


# ------------------------------------------------------------- the whole run


def test_all_is_measured_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    path = tmp_path / "results" / "latest.json"
    printed, said = capsys.readouterr()
    assert printed.count("no peer") == 2
    assert f"2 benchmarks, 4 rows in 0 s: {path}" in said
    assert "pictures are left out: nothing is drawn here" in said
    found = strict(path.read_text())
    assert [each["name"] for each in found["modules"]["two"]] == ["fast", "no peer"]
    assert found["state"] == "whole"
    assert found["options"] == {"quick": False, "only": "", "rounds": 9, "seconds": 0.3}
    assert set(found["took"]) == {"one.good", "two.good"}
    assert {"cpu", "cores", "RAM GiB", "kernel", "python", "packages"} < found["machine"].keys()
    assert len(found["machine"]["load average before"]) == len(found["machine"]["load average after"]) == 3
    assert report.as_json(found) + "\n" == path.read_text(), "the file is not what it says"


def test_json_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--json", "--only", "two.") == 0
    found = strict(capsys.readouterr().out)
    assert (found["state"], list(found["modules"])) == ("part", ["two"])


def test_a_benchmark_that_fails_is_told_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, one=[bad], two=[good]) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "failed: one.bad\n" in said
    found = Report.read(tmp_path / "results" / "latest.json")
    assert [(row.name, row.failed) for row in found.modules["one"]] == [
        ("slow", "AssertionError: a message was lost"),
        ("one.bad", "AssertionError: a message was lost"),
    ]
    assert [row.failed for row in found.modules["two"]] == [None, None]
    assert found.state == "whole"


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    whole = (tmp_path / "results" / "latest.json").read_text()
    assert run(tmp_path, one=[good, stopped], two=[good]) == 130
    assert "interrupted: " in capsys.readouterr().err
    assert (tmp_path / "results" / "latest.json").read_text() == whole
    found = Report.read(tmp_path / "results" / "partial.json")
    assert found.state == "interrupted"
    assert {name: len(rows) for name, rows in found.modules.items()} == {"one": 2}


@pytest.mark.parametrize(
    ("arguments", "name"), [(["--quick"], "quick.json"), (["--only", "one.good"], "partial.json"), ([], "latest.json")]
)
def test_the_figures_of_a_full_run_stay_until_the_next_one(tmp_path: Path, arguments: list[str], name: str) -> None:
    assert run(tmp_path, *arguments) == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == [name]


def test_out_says_where(tmp_path: Path) -> None:
    assert run(tmp_path, "--quick", "--out", str(tmp_path / "new" / "mine.json")) == 0
    assert Report.read(tmp_path / "new" / "mine.json").options["quick"]
    assert not (tmp_path / "results").exists()


def test_a_name_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "--only", "nonsense")
    assert ended.value.code == 2
    assert "no benchmark has 'nonsense' in its name; try one of one, two" in capsys.readouterr().err


def test_outside_of_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.begun(Scale(), "").commit is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.begun(Scale(), "").commit is None


def test_the_commit_is_that_of_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mpsnap").mkdir()
    (tmp_path / "mpsnap" / "code.py").write_text("")
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for arguments in (["init", "-q"], ["add", "mpsnap"], [*who, "commit", "-q", "-m", "begin"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    commit = report.begun(Scale(), "").commit
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "mpsnap" / "code.py").write_text("changed = True\n")
    assert report.begun(Scale(), "").commit == commit + "+"
    monkeypatch.setattr(report, "ROOT", tmp_path / "mpsnap")
    assert report.begun(Scale(), "").commit is None, "that is the commit of somebody else's repository"


# -------------------------------------------------------------------- README


def test_tables_come_between_their_markers(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "before\n<!-- figures: machine -->\nold\n<!-- end -->\nprose\n<!-- figures: one -->\n<!-- end -->\n"
        "<!-- figures: two -->\n<!-- end -->\n<!-- figures: other -->\nold\n<!-- end -->\nafter\n"
    )
    assert run(tmp_path) == 0
    assert run(tmp_path, "--readme") == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- figures: machine -->\n\nMeasured at 2")
    assert "9 rounds of 0.3 s" in text
    assert f"<!-- figures: two -->\n\n{markdown([FAST, LACKING])}\n\n<!-- end -->\n" in text
    assert f"<!-- figures: other -->\n\n{NOTHING}\n\n<!-- end -->\nafter\n" in text
    assert "prose" in text
    assert "old" not in text
    assert run(tmp_path, "--readme") == 0
    assert (tmp_path / "README.md").read_text() == text, "filled twice it is another"


def test_a_table_in_markdown() -> None:
    assert markdown([replace(FAST, name="a|b")]).splitlines()[1:] == [
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        r"| a\|b | 2 x | 1 to 3 | at least 1.5 | yes | 4 | NO |  |",
    ]


def test_a_picture_that_is_there_is_shown(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- figures: machine --><!-- end --><!-- figures: channels --><!-- end -->")
    assert run(tmp_path, channels=[good]) == 0
    (tmp_path / "results" / "channels.svg").write_text("<svg/>")
    assert run(tmp_path, "--readme") == 0
    assert "![channels](results/channels.svg)\n\n| measure |" in (tmp_path / "README.md").read_text()


def test_without_figures_the_readme_says_so(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- figures: one -->\nold\n<!-- end -->")
    assert run(tmp_path, "--readme") == 0
    assert (tmp_path / "README.md").read_text() == f"<!-- figures: one -->\n\n{NOTHING}\n\n<!-- end -->"


def test_rows_without_markers_are_refused() -> None:
    with pytest.raises(ValueError, match="no markers for two"):
        filled("<!-- figures: one --><!-- end -->", {"one": "", "two": ""})


def test_the_readme_has_markers_for_all_modules_and_is_what_the_recorded_run_makes_of_it(tmp_path: Path) -> None:
    text = README.read_text()
    assert set(re.findall(r"<!-- figures: (\w+) -->", text)) == {"machine", *MODULES}
    (tmp_path / "README.md").write_text(text)
    latest = README.parent / "results" / "latest.json"
    if not latest.exists():
        assert text.count(NOTHING) == 1 + len(MODULES)
        return
    found = Report.read(latest)
    assert (found.state, found.options["quick"]) == ("whole", False)
    pictures = {name: f"results/{file}" for name, file in plots.FILES.items() if (latest.parent / file).exists()}
    assert filled(text, report.tables(found, pictures)) == text, "run python -m benchmarks --readme"


# ------------------------------------------------------------------ pictures


GROWTH = [
    row(f"latency, {k}", [k, k + 1.0], unit="ms", notes={unit: k}) for k in (4, 8) for unit in ("channels", "hops")
]
PAUSE = row("pause, 64 MB", [0.1], sense="at most", notes={"pause ms": 2.0, "encoding ms": 2500.0})


def _in_a_process_of_its_own(*arguments: str) -> str:
    """Run `python -m benchmarks`, since matplotlib keeps its fonts open; return what it says."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=README.parent.parent, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_pictures_are_drawn_of_the_modules_that_have_rows_for_them(tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    found = report.begun(Scale(), "")
    report.ended(found, 1.0)
    found.modules = {"channels": [FAST, LACKING], "snapshots": GROWTH, "capture": [replace(PAUSE, failed="lost")]}
    found.write(tmp_path / "found.json")
    (tmp_path / "README.md").write_text(README.read_text())
    arguments = ("--readme", "--out", str(tmp_path / "found.json"), "--into", str(tmp_path / "README.md"))
    _in_a_process_of_its_own(*arguments)
    assert {path.name for path in tmp_path.glob("*.svg")} == {"channels.svg", "snapshots.svg"}
    text = (tmp_path / "README.md").read_text()
    assert re.findall(r"!\[(\w+)\]\((.*)\)", text) == [("channels", "channels.svg"), ("snapshots", "snapshots.svg")]
    once = {path: path.read_bytes() for path in tmp_path.iterdir()}
    _in_a_process_of_its_own(*arguments)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == once, "the same figures make other files"


def test_without_matplotlib_a_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from benchmarks import plots; print(plots.missing())"
    done = subprocess.run([sys.executable, "-c", code], cwd=README.parent.parent, capture_output=True, text=True)
    assert done.stdout == "`pip install -e '.[plot]'` for matplotlib\n", done.stderr


def test_the_constants_that_can_be_swept_are_there() -> None:
    for module, name in sweep.CONSTANTS.values():
        assert isinstance(getattr(module, name), (int, float))
