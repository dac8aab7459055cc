"""``autotune export --merge`` from many terminals at the same time."""

from __future__ import annotations

import json

import pytest

from tests.patience import PATIENCE_S
from tests.recordings import SHRINK, write_recording


@pytest.mark.slow
def test_no_entry_is_lost_where_many_commands_export_into_one_folder(autotune, tmp_path):
    tokens = range(1, 9)
    for count in tokens:
        shape = SHRINK | {"num_tokens": count}
        recording = write_recording(tmp_path / f"{count}.jsonl.gz", shape)
        run = ("run", "--replay", recording, "--trials", 2, "--output", f"own-{count}")
        ended = autotune(*run, "--storage", f"sqlite:///{count}.db")
        assert ended.code == 0, ended.err
    started = [
        autotune.start("export", "--merge", "--storage", f"sqlite:///{count}.db")
        for count in tokens
    ]
    assert [process.communicate(timeout=PATIENCE_S)[1] for process in started] == [""] * len(tokens)
    assert [process.returncode for process in started] == [0] * len(tokens)
    (name,) = [name for name in autotune.files() if name.endswith("_SHRINK.json")]
    table = json.loads(autotune.files()[name])
    assert list(table["9"]["3"]) == [str(count) for count in tokens]
