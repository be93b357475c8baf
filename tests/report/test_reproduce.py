"""Published tables: their commands can be typed, and our numbers are those of the runs that are there."""

from __future__ import annotations

import json
import shlex

import pytest

from unmemorize.cli import app
from unmemorize.core.shards import write_rows
from unmemorize.report.bench import RANKING
from unmemorize.report.reproduce import TABLES, reproductions


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_command_can_be_typed_and_the_published_number_is_expected(table, tmp_path):
    (described,) = [row for row in reproductions(tmp_path) if row["name"] == table.name]
    command = shlex.split(described["command"])
    app.parse_args(command[1:], exit_on_error=False, print_error=False)
    assert command[-2:] == ["--run", str(tmp_path / table.name)]
    for number in described["numbers"]:
        assert number["low"] <= number["published"] <= number["high"]
        assert number["source"]
        assert number["ours"] is None


def test_our_numbers_are_read_where_a_run_is(call, tmp_path):
    """From a ranking and from an audit, by method, mitigation and updates; what is not there is not run."""
    ranking = {"model": "m", "group": "memorized", "method": "noise-gap:last=50", "auc": 0.75, "tpr": 0.5}
    other = ranking | {"group": "template", "auc": 0.1}
    write_rows(tmp_path / "wen-detection-sd14" / "scores" / "bench.parquet", [other, ranking], RANKING)
    scores = tmp_path / "dori-sd14" / "scores"
    write_rows(scores / "mitigations.parquet", [{"name": "none", "copy_rate": 0.9}, {"name": "nemo", "copy_rate": 0.3}])
    points = [("wanda", "memorized", 0, 0.1), ("nemo", "negative", 50, 0.2), ("nemo", "memorized", 50, 0.8)]
    names = ("mitigation", "group", "steps", "copy_rate")
    write_rows(scores / "attack_curve.parquet", [dict(zip(names, point, strict=True)) for point in points])
    code, out, _ = call("reproduce", tmp_path, "--json")
    assert code == 0
    tables = {table["name"]: table["numbers"] for table in json.loads(out)["tables"]}
    assert [number["ours"] for number in tables["wen-detection-sd14"]] == [0.75, 0.5, None, None]
    assert [number["ours"] for number in tables["dori-sd14"]] == [0.9, 0.3, 0.8, None, None]
    code, out, _ = call("reproduce", tmp_path)
    assert code == 0
    assert "0.750" in out
    assert "not run" in out


def test_a_damaged_run_is_one_line(call, tmp_path):
    path = tmp_path / "wen-detection-sd14" / "scores" / "bench.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1")
    code, out, err = call("reproduce", tmp_path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert str(path) in err
