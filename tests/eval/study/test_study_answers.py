"""The file of answers: durable, counted once, revisions kept, invitations closed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from study_house import study_of

from eval.study.answers import AnswerStore, Participant
from eval.study.design import tasks_of
from m4v.core.errors import ConfigError, InfrastructureError, InputError

STUDY = study_of(prompts=3, criteria=1)
TASKS = tasks_of(STUDY, "p001")
FIRST, OTHER = {"aesthetic": (1, 2, 3, 4, 5)}, {"aesthetic": (5, 4, 3, 2, 1)}


def store_of(folder: Path) -> AnswerStore:
    return AnswerStore(folder / "study" / "answers.db", "s" * 64)


def consenting(store: AnswerStore) -> Participant:
    (participant, token), *_ = store.invite(1)
    store.consent(participant)
    found = store.by_token(token)
    assert found is not None
    return found


def test_an_answer_counts_once_and_the_last_word_stands(tmp_path: Path) -> None:
    with store_of(tmp_path) as store:
        participant = consenting(store)
        for said in (FIRST, FIRST, OTHER, OTHER):
            store.record(participant, TASKS[0], said)
        assert store.answered(participant) == {TASKS[0].id: OTHER}
        assert [a.said for a in store.snapshot().answers] == [OTHER]
    with closing(sqlite3.connect(tmp_path / "study" / "answers.db")) as database:
        rows = database.execute("SELECT COUNT(*) FROM answer").fetchone()
    assert rows == (2,)  # what was said before stays on record


def test_answers_cannot_be_changed_behind_it(tmp_path: Path) -> None:
    with store_of(tmp_path) as store:
        store.record(consenting(store), TASKS[0], FIRST)
    with closing(sqlite3.connect(tmp_path / "study" / "answers.db")) as database:
        for statement in ("UPDATE answer SET said = '{}'", "DELETE FROM answer"):
            with pytest.raises(sqlite3.IntegrityError, match="answers stay"):
                database.execute(statement)


def test_a_revoked_invitation_takes_nothing_more_and_is_named(tmp_path: Path) -> None:
    with store_of(tmp_path) as store:
        participant = consenting(store)
        store.record(participant, TASKS[0], FIRST)
        store.revoke("p001")
        store.revoke("p001")
        with pytest.raises(InputError, match="not open"):
            store.record(participant, TASKS[1], FIRST)
        assert store.snapshot().revoked == ("p001",)
        assert len(store.snapshot().answers) == 1
        with pytest.raises(InputError, match=r"no such participant: 'p009'"):
            store.revoke("p009")


def test_nobody_answers_before_they_agreed(tmp_path: Path) -> None:
    with store_of(tmp_path) as store:
        (participant, token), *_ = store.invite(1)
        with pytest.raises(InputError, match="not open"):
            store.record(participant, TASKS[0], FIRST)
        assert store.by_token(token + "x") is None


def test_tokens_are_kept_as_digests_and_numbers_go_on(tmp_path: Path) -> None:
    with store_of(tmp_path) as store:
        made = store.invite(2) + store.invite(1)
    assert [p.id for p, _ in made] == ["p001", "p002", "p003"]
    assert len({token for _, token in made}) == 3
    held = (tmp_path / "study" / "answers.db").read_bytes()
    assert not any(token.encode() in held for _, token in made)


def test_the_file_of_another_study_is_refused(tmp_path: Path) -> None:
    store_of(tmp_path).close()
    with pytest.raises(ConfigError, match="another study"):
        AnswerStore(tmp_path / "study" / "answers.db", "t" * 64)
    (tmp_path / "broken.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(InfrastructureError, match="cannot be read or kept"):
        AnswerStore(tmp_path / "broken.db", "s" * 64)


def test_many_threads_and_two_connections_lose_nothing(tmp_path: Path) -> None:
    with store_of(tmp_path) as one, store_of(tmp_path) as other:
        people = [p for p, _ in one.invite(8)]
        for participant in people:
            one.consent(participant)

        def answer(participant: Participant) -> None:
            store = one if participant.number % 2 else other
            for task in tasks_of(STUDY, participant.id):
                store.record(participant, task, FIRST)

        threads = [threading.Thread(target=answer, args=(p,)) for p in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        snapshot = one.snapshot()
        assert len(snapshot.answers) == 8 * 3
        assert snapshot == other.snapshot()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_study_answers import FIRST, STUDY, TASKS, store_of
from eval.study.design import tasks_of
store = store_of(Path(sys.argv[2]))
while True:
    for participant in store.participants():
        for task in tasks_of(STUDY, participant.id):
            store.record(participant, task, {"aesthetic": FIRST["aesthetic"]})
            print(participant.id, task.id, flush=True)
    store.consent(store.invite(1)[0][0])
"""


def test_what_was_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    with store_of(tmp_path) as store:
        consenting(store)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parents[2])])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(here), str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert writer.stdout is not None
    seen = [writer.stdout.readline().split() for _ in range(25)]
    writer.send_signal(signal.SIGKILL)
    seen += [line.split() for line in writer.stdout if len(line.split()) == 2 and line.endswith("\n")]
    writer.wait()
    writer.stdout.close()
    with store_of(tmp_path) as store:
        kept = {(a.participant, a.task) for a in store.snapshot().answers}
        assert {(p, t) for p, t in seen} <= kept
        store.record(consenting(store), TASKS[0], FIRST)  # and goes on
