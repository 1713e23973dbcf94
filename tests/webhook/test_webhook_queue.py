from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from oml_mlflow.errors import ConfigError
from oml_mlflow.webhook.queue import Delivery, Job, QueueFull, WebhookQueue

DAY_S = 86_400.0


@pytest.fixture
def queue(tmp_path: Path) -> WebhookQueue:
    return WebhookQueue(tmp_path / "queue.db")


def delivery(number: int | str, model: str = "clip") -> Delivery:
    return Delivery(f"id{number}", "model_version_alias.created", model, "prod")


def ids(queue: WebhookQueue) -> list[str]:
    rows = queue._connection.execute("SELECT id FROM deliveries ORDER BY received_at, id")
    return [row[0] for row in rows]


def test_an_id_is_taken_once_and_a_model_has_one_job(queue: WebhookQueue) -> None:
    assert queue.accept(delivery(1), 100.0)
    assert not queue.accept(delivery(1), 101.0)
    assert queue.accept(delivery(2), 102.0)
    assert queue.accept(delivery(3, "other"), 103.0)
    assert queue.depth(110.0).jobs == 2
    assert queue.depth(110.0).oldest_s == 10.0
    assert queue.take() == Job("clip", 2, 0)
    assert queue.take() == Job("other", 1, 0)
    assert queue.take() is None


def test_what_comes_while_a_job_runs_is_done_afterwards(queue: WebhookQueue) -> None:
    queue.accept(delivery(1))
    job = queue.take()
    assert job is not None
    queue.accept(delivery(2))
    assert queue.take() is None  # one at a time for each model
    queue.done(job)
    again = queue.take()
    assert again == Job("clip", 2, 0)
    queue.done(again)
    assert queue.depth().jobs == 0
    assert not queue.accept(delivery(2))
    assert queue.depth().jobs == 0


def test_what_failed_waits_unless_somebody_acts(queue: WebhookQueue) -> None:
    queue.accept(delivery(1), 100.0)
    job = queue.take(100.0)
    assert job is not None
    queue.fail(job, "target-unreachable", 50.0, 100.0)
    assert queue.take(149.0) is None
    assert queue.next_due() == 150.0
    assert queue.depth().failing == 1
    job = queue.take(150.0)
    assert job == Job("clip", 1, 1)
    queue.fail(job, "target-unreachable", 50.0, 150.0)
    queue.accept(delivery(2), 151.0)
    job = queue.take(151.0)
    assert job == Job("clip", 2, 2)
    queue.accept(delivery(3), 152.0)
    queue.fail(job, "target-unreachable", 50.0, 153.0)
    assert queue.take(153.0) == Job("clip", 3, 3)


def test_what_ran_when_the_process_died_waits_again(tmp_path: Path) -> None:
    queue = WebhookQueue(tmp_path / "queue.db")
    queue.accept(delivery(1))
    queue.take()
    queue.close()
    queue = WebhookQueue(tmp_path / "queue.db")
    assert queue.take() is None
    assert queue.recover() == 1
    assert queue.take() == Job("clip", 1, 0)
    assert not queue.accept(delivery(1))


def test_id_and_job_are_written_together_or_not_at_all(queue: WebhookQueue) -> None:
    queue._connection.execute(
        "CREATE TRIGGER broken BEFORE INSERT ON jobs BEGIN SELECT raise(FAIL, 'no room'); END"
    )
    with pytest.raises(sqlite3.Error, match="no room"):
        queue.accept(delivery(1))
    assert ids(queue) == []
    queue._connection.execute("DROP TRIGGER broken")
    assert queue.accept(delivery(1))
    assert queue.depth().jobs == 1


def test_old_ids_are_forgotten_but_none_that_can_be_sent_again(tmp_path: Path) -> None:
    queue = WebhookQueue(tmp_path / "queue.db", window_s=300.0, kept_rows=100)
    start = 1e9
    for number in range(100):
        queue.accept(delivery(number), start + number)
    assert len(ids(queue)) == 100
    with pytest.raises(QueueFull):  # all may be sent again
        queue.accept(delivery("late"), start + 600)
    assert len(ids(queue)) == 100
    assert not queue.accept(delivery(0), start + 600)
    assert queue.accept(delivery("later"), start + 1000)
    assert 80 < len(ids(queue)) < 100
    assert not queue.accept(delivery(99), start + 1000)
    assert queue.depth().jobs == 1

    many = WebhookQueue(tmp_path / "many.db")
    many.accept(delivery("old"), start)
    for number in range(500):
        many.accept(delivery(number), start + 8 * DAY_S)
    assert "idold" not in ids(many)


def test_it_stays_small(tmp_path: Path) -> None:
    queue = WebhookQueue(tmp_path / "queue.db", kept_rows=500)
    queue._connection.execute("PRAGMA synchronous = OFF")
    for number in range(5000):
        queue.accept(delivery(number, f"model{number % 7}"), number * 1000.0)
        if job := queue.take():
            queue.done(job)
    assert len(ids(queue)) <= 500
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6 * 2**20


def test_threads_share_it(queue: WebhookQueue) -> None:
    new: list[bool] = []

    def work() -> None:
        new.extend(queue.accept(delivery(number, f"model{number % 5}")) for number in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert new.count(True) == 50
    assert queue.depth().jobs == 5


def test_a_file_that_can_not_be_used_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    queue = WebhookQueue(tmp_path / "queue.db")
    with pytest.raises(ConfigError, match="another receiver has the queue"):
        WebhookQueue(tmp_path / "queue.db")
    queue.close()
    (tmp_path / "text").write_text("no database, but a text that is long enough" * 100)
    with pytest.raises(ConfigError, match="can't be used as a queue"):
        WebhookQueue(tmp_path / "text")
    with pytest.raises(ConfigError, match="can't be used as a queue"):
        WebhookQueue(tmp_path / "no" / "folder")
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 9")
    newer.close()
    with pytest.raises(ConfigError, match="newer release"):
        WebhookQueue(tmp_path / "newer")
