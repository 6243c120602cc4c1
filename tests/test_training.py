import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sidrec.errors import ConfigError, DataError, ServiceError
from sidrec.processes import uses_bf16
from sidrec.training import TrainConfig, train
from sidrec.training_config import learning_rate_at
from sidrec.types import Histories

NUM_ITEMS = 20


@dataclass(frozen=True)
class TinyConfig:
    dropout: float = 0.2
    width: int = 8


class Tiny(nn.Module):
    """Next item from the last one: an embedding, dropout, a linear layer."""

    max_length = 6

    def __init__(self, dropout=0.2, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.config = TinyConfig(dropout, width)
        self.embedding = nn.Embedding(NUM_ITEMS + 1, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, NUM_ITEMS)

    def loss(self, batch):
        logits_BTN = self.out(self.dropout(self.embedding(batch.items_BT + 1)))
        loss = F.cross_entropy(
            logits_BTN.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=-1
        )
        return loss, {"nll": loss.detach()}


def weights(model):
    return b"".join(t.numpy().tobytes() for t in model.state_dict().values())


def histories(num=120, seed=0):
    random = np.random.default_rng(seed)
    return Histories.from_lists(
        [(n + np.arange(random.integers(0, 15))) % NUM_ITEMS for n in range(num)]
    )


def small_config(**changes):
    steady = TrainConfig(
        epochs=6,
        batch_positions=64,
        learning_rate=0.03,
        warmup_steps=4,
        precision="fp32",
        patience=0,
    )
    return replace(steady, **changes)


def validate(model):
    """Log-likelihood of the rule the data follow: the next item is one higher."""
    logits_NN = model.out(model.embedding(torch.arange(NUM_ITEMS) + 1))
    return -float(F.cross_entropy(logits_NN, (torch.arange(NUM_ITEMS) + 1) % NUM_ITEMS))


class Stop(Exception):
    pass


def run(config=None, *, model=None, data=None, **arguments):
    model = Tiny() if model is None else model
    data = histories() if data is None else data
    result = train(
        model, data, config or small_config(), **{"validate": validate, "device": "cpu"} | arguments
    )
    return model, result


def stop_at(step):
    def on_event(event):
        if event.step == step and event.metric is None:
            raise Stop

    return on_event


def test_it_learns_the_rule_and_reports_the_run():
    model, result = run(small_config(epochs=30))
    logits_NN = model.out(model.embedding(torch.arange(NUM_ITEMS) + 1))
    assert (logits_NN.argmax(1) == (torch.arange(NUM_ITEMS) + 1) % NUM_ITEMS).all()
    assert result.losses[-1] < 0.2 < result.losses[0] and len(result.losses) == 30
    assert [epoch for epoch, _ in result.metrics] == list(range(1, 31))
    assert result.stopped_because == "epochs" and result.epochs_run == 30
    assert result.seconds >= result.train_seconds > 0
    targets = int(np.maximum(histories().lengths - 1, 0).sum()) * 30
    assert result.targets_per_second == pytest.approx(targets / result.train_seconds)
    assert not model.training


def test_same_seed_same_bytes_and_another_seed_others():
    first, again, other = run()[0], run()[0], run(small_config(seed=1))[0]
    assert weights(first) == weights(again) != weights(other)


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = Tiny.__new__(Tiny)
    with torch.random.fork_rng():
        model.__init__()
    run(small_config(epochs=1), model=model)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("step", [1, 13, 29])
def test_a_run_broken_off_at_any_step_resumes_to_the_same_bytes(tmp_path, step, ema):
    config = small_config(
        epochs=3, ema=ema, validate_every_epochs=0.4, checkpoint_every_seconds=1e-9
    )
    whole, expected = run(config)
    with pytest.raises(Stop):
        run(config, run_dir=tmp_path, on_event=stop_at(step))
    steps = []
    resumed, result = run(config, run_dir=tmp_path, on_event=lambda e: steps.append(e.step))
    assert steps[0] == step  # the step whose event broke it off was not yet saved
    assert weights(resumed) == weights(whole)
    assert (result.losses, result.metrics) == (expected.losses, expected.metrics)
    assert result.best_epoch == expected.best_epoch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_how_to_go_on_and_gives_the_handlers_back(tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    whole, _ = run()

    def on_event(event):
        if event.step == 7:
            os.kill(os.getpid(), number)

    with pytest.raises(ServiceError, match=rf"interrupted by {number.name}.*step 7.*run again"):
        run(run_dir=tmp_path, on_event=on_event)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    steps = []
    resumed, _ = run(run_dir=tmp_path, on_event=lambda e: steps.append(e.step))
    assert steps[0] == 8 and weights(resumed) == weights(whole)


def test_a_signal_in_the_last_step_ends_the_program_too_and_loses_nothing(tmp_path):
    steps = []
    whole, expected = run(on_event=lambda e: steps.append(e.step))

    sent = []

    def on_event(event):
        if event.step == steps[-1] and not sent:
            sent.append(True)  # a second signal would act at once
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(ServiceError, match="interrupted by SIGTERM"):
        run(run_dir=tmp_path, on_event=on_event)
    again, found = run(run_dir=tmp_path)
    assert weights(again) == weights(whole) and found.metrics == expected.metrics


def test_a_finished_run_gives_its_weights_and_result_at_once(tmp_path):
    model, result = run(run_dir=tmp_path)

    def must_not_be_called(_):
        raise AssertionError

    again, found = run(run_dir=tmp_path, validate=must_not_be_called, on_event=must_not_be_called)
    assert weights(again) == weights(model) and found == result


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config": small_config(learning_rate=0.5)}, r"training.learning_rate was 0.03, now 0.5"),
        ({"model": Tiny(dropout=0.0)}, r"model.dropout was 0.2, now 0.0"),
        ({"data": histories(seed=1)}, "data.sha256 was"),
        ({"model": Tiny(width=9)}, r"weights.embedding.weight was \[21, 8\], now \[21, 9\]"),
    ],
)
def test_a_run_directory_of_another_run_is_refused_by_the_name_of_the_difference(
    tmp_path, changes, expected
):
    with pytest.raises(Stop):
        run(small_config(checkpoint_every_seconds=1e-9), run_dir=tmp_path, on_event=stop_at(3))
    with pytest.raises(ConfigError, match=expected):
        run(**{"config": small_config(), **changes}, run_dir=tmp_path)


def test_checkpoints_may_come_at_another_pace_when_a_run_resumes(tmp_path):
    with pytest.raises(Stop):
        run(small_config(checkpoint_every_seconds=1e-9), run_dir=tmp_path, on_event=stop_at(3))
    assert weights(run(run_dir=tmp_path)[0]) == weights(run()[0])


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_names_step_and_users_and_is_never_saved(tmp_path, where):
    class Poisoned(Tiny):
        def loss(self, batch):
            loss, parts = super().loss(batch)
            if not (batch.items_BT == 13).any():
                return loss, parts
            if where == "loss":
                return loss * math.nan, parts
            return loss + (self.out.weight * 0).abs().sqrt().sum(), parts  # 0, its slope is not

    random_items = np.random.default_rng(0).integers(0, 13, size=(40, 6))
    random_items[17, 2] = 13
    data = Histories.from_lists(list(random_items))
    config = small_config(batch_positions=20, checkpoint_every_seconds=1e-9)
    finite = []
    with pytest.raises(ServiceError, match="training stopped") as caught:
        run(config, model=Poisoned(), data=data, run_dir=tmp_path,
            on_event=lambda e: finite.append(e.step))  # fmt: skip
    message = str(caught.value)
    bad_step = max(finite, default=0)
    assert f"epoch 0, batch {bad_step} (step {bad_step})" in message
    assert "17" in message.split("training rows")[1].split("]")[0]
    for hint in ("lower learning_rate", "precision = 'fp32'", str(tmp_path)):
        assert hint in message
    saved = sorted((tmp_path / "checkpoints").iterdir())
    if bad_step:
        assert saved[-1].name == f"step_{bad_step:09d}"


def test_patience_stops_and_the_best_weights_come_back(tmp_path):
    scores, seen = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9]), []

    def scripted(model):
        seen.append(weights(model))
        return next(scores)

    config = small_config(epochs=20, patience=3)
    model, result = run(config, validate=scripted, run_dir=tmp_path)
    assert result.stopped_because == "patience"
    assert (result.best_metric, result.best_epoch, result.epochs_run) == (0.3, 2.0, 5.0)
    assert weights(model) == seen[1] != seen[4]
    loaded, _ = run(config, run_dir=tmp_path)
    assert weights(loaded) == seen[1]


def test_validation_keeps_to_its_calendar_and_always_closes_the_run():
    config = small_config(epochs=3, validate_every_epochs=2, validate_from_epoch=1.5)
    assert [epoch for epoch, _ in run(config)[1].metrics] == [2.0, 3.0]


def test_without_validation_the_last_weights_stay():
    model, result = run(small_config(epochs=1), validate=None)
    assert result.best_metric is None and result.metrics == []
    assert weights(model) != weights(Tiny())


def test_wall_time_ends_the_run_and_the_schedule_with_it():
    rates = []
    config = small_config(epochs=10**6, max_seconds=0.4, warmup_steps=0)
    _, result = run(config, on_event=lambda e: rates.append(e.learning_rate))
    assert result.stopped_because == "max_seconds" and 0.4 <= result.seconds < 3
    assert rates[-1] < 0.05 * config.learning_rate and rates == sorted(rates, reverse=True)


def test_the_processor_clock_does_not_count_waiting():
    class Waits(Tiny):
        def loss(self, batch):
            time.sleep(0.05)
            return super().loss(batch)

    settings = {"epochs": 10**6, "max_seconds": 0.2, "patience": 0}
    steps = {}
    for clock in ("wall", "processor"):
        config = small_config(**settings, clock=clock)
        _, result = run(config, model=Waits(), validate=None)
        assert result.stopped_because == "max_seconds"
        steps[clock] = result.epochs_run
    assert steps["processor"] > 2 * steps["wall"]


def test_averaged_weights_are_what_is_validated_and_kept():
    class Line(nn.Module):
        """One weight whose gradient is always 1, so AdamW moves it by the learning rate."""

        max_length = 6

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def loss(self, batch):
            return self.w.sum(), {}

    values = []

    def look(model):
        values.append(float(model.w.detach()))
        return len(values)

    data = Histories.from_lists([[0, 1]] * 4)
    config = small_config(epochs=3, ema=0.5, schedule="constant", warmup_steps=0,
                          learning_rate=1.0)  # fmt: skip
    model, _ = run(config, model=Line(), data=data, validate=look)
    # weights −1, −2, −3; decay min(.5, (1 + t) / (10 + t)) = 2/11, 3/12, 4/13
    first = -1 * 9 / 11
    second = first * 3 / 12 - 2 * 9 / 12
    third = second * 4 / 13 - 3 * 9 / 13
    assert values == pytest.approx([first, second, third], abs=1e-5)
    assert float(model.w.detach()) == pytest.approx(third, abs=1e-5)


def test_schedules_have_the_values_worked_out_by_hand():
    def rate(schedule, step, progress, warmup=0):
        config = TrainConfig(learning_rate=2.0, schedule=schedule, warmup_steps=warmup)
        return pytest.approx(learning_rate_at(config, step, progress))

    assert [rate("cosine", 0, p) for p in (0, 0.25, 0.5, 1)] == [2, 1 + math.sqrt(0.5), 1, 0]
    assert [rate("linear", 0, p) for p in (0, 0.25, 1, 1.2)] == [2, 1.5, 0, 0]
    assert rate("constant", 99, 0.9) == 2
    assert [rate("constant", s, 0, warmup=4) for s in (0, 1, 3, 4)] == [0.5, 1, 2, 2]
    assert [rate("inverse_sqrt", s, 0, warmup=4) for s in (1, 3, 15)] == [1, 2, 1]
    assert rate("cosine", 1, 0.5, warmup=4) == 0.5


def test_weight_decay_spares_vectors_and_what_the_model_names():
    class Flat(Tiny):
        def loss(self, batch):
            loss, parts = super().loss(batch)
            return loss * 0, parts

        def no_weight_decay(self, name):
            return name.startswith("embedding")

    config = small_config(epochs=1, weight_decay=0.5, schedule="constant", warmup_steps=0)
    model, result = run(config, model=Flat(), validate=None)
    start = Tiny()
    steps = round(result.targets_per_second * result.train_seconds / 64)
    assert torch.equal(model.embedding.weight, start.embedding.weight)
    assert torch.equal(model.out.bias, start.out.bias)
    shrunk = start.out.weight * (1 - 0.03 * 0.5) ** steps
    torch.testing.assert_close(model.out.weight, shrunk, rtol=1e-3, atol=1e-6)


def test_augmentation_sees_each_batch_and_is_repeatable():
    class Augmented(Tiny):
        seen: list[float]

        def augment(self, batch, generator):
            self.seen.append(float(torch.rand((), generator=generator)))
            return batch

    draws = []
    for _ in range(2):
        model = Augmented()
        model.seen = []
        run(model=model)
        draws.append(model.seen)
    assert draws[0] == draws[1] and len(set(draws[0])) == len(draws[0]) > 6


def test_events_tell_what_a_progress_bar_needs():
    events = []
    config = small_config(epochs=2)
    _, result = run(config, on_event=events.append)
    steps = [e for e in events if e.metric is None]
    assert [e.step for e in steps] == list(range(1, len(steps) + 1))
    assert [e.metric for e in events if e.metric is not None] == [m for _, m in result.metrics]
    assert steps[-1].epoch == 2.0 and steps[-1].eta_seconds == 0 < steps[0].eta_seconds
    assert steps[0].parts == {"nll": pytest.approx(steps[0].loss)}
    assert all(e.targets_per_second > 0 for e in events)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"ema": 1.0}, "ema must be in"),
        ({"schedule": "cosin"}, "schedule must be one of .*'cosine'.*got 'cosin'"),
        ({"precision": "fp16"}, "precision must be auto, bf16 or fp32"),
    ],
)
def test_settings_out_of_range_are_refused(setting, expected):
    with pytest.raises(ConfigError, match=expected):
        TrainConfig(**setting)


def test_users_with_one_event_are_nothing_to_learn_from():
    with pytest.raises(DataError, match="nothing to learn"):
        run(data=Histories.from_lists([[1], [2]]))


def test_bf16_trains_too_and_fp32_is_respected():
    assert not uses_bf16("fp32", torch.device("cpu")) and uses_bf16("bf16", torch.device("cpu"))
    _, result = run(small_config(epochs=30, precision="bf16"))
    assert result.losses[-1] < 0.3


# Whole processes ---------------------------------------------------------------------------------


def start(run_dir, out, *, pause=0.0, dropout=0.2, **environment):
    command = [sys.executable, __file__, str(run_dir), str(out), str(pause), str(dropout)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def outcome(out):
    hexed, metrics, losses = json.loads(out.read_text())
    return bytes.fromhex(hexed), metrics, losses


def test_two_processes_equal_one_up_to_summation_order(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    team = [
        start(
            tmp_path / "run",
            tmp_path / f"{rank}.json",
            dropout=0,
            WORLD_SIZE="2",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        for rank in range(2)
    ]
    for process in team:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    model, expected = run(model=Tiny(dropout=0))
    one = np.frombuffer(weights(model), dtype=np.float32)
    for rank in range(2):
        several, metrics, losses = outcome(tmp_path / f"{rank}.json")
        np.testing.assert_allclose(np.frombuffer(several, dtype=np.float32), one, atol=1e-5)
        np.testing.assert_allclose(losses, expected.losses, atol=1e-5)
        np.testing.assert_allclose(metrics, expected.metrics, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_killed_at_random_moments_resumes_to_the_same_bytes(tmp_path, number):
    moments = random.Random(0)
    kills = told = 0
    while True:
        process = start(tmp_path / "run", tmp_path / "out.json", pause=0.04)
        known = latest(tmp_path / "run")
        while process.poll() is None and latest(tmp_path / "run") == known:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.2))
        over = process.poll() is not None
        process.send_signal(number)  # nothing happens to one that has ended
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert not over, errors
        kills += 1
        if process.returncode != -number:  # which it is when the loop is already over
            assert number == signal.SIGTERM and "interrupted by SIGTERM" in errors
            told += 1
    assert kills >= 2 and (told or number == signal.SIGKILL)
    model, result = run(small_config(checkpoint_every_seconds=1e-3))
    killed, metrics, losses = outcome(tmp_path / "out.json")
    assert killed == weights(model)
    assert losses == result.losses and [tuple(m) for m in metrics] == result.metrics


def latest(run_dir):
    return max((p.name for p in run_dir.glob("checkpoints/step_*")), default="")


if __name__ == "__main__":  # a training process of its own, for `start`
    run_dir, out, pause, dropout = sys.argv[1:]
    config = small_config(checkpoint_every_seconds=1e-3)
    model = Tiny(dropout=float(dropout))
    result = train(model, histories(), config, validate=validate, run_dir=Path(run_dir),
                   device="cpu", on_event=lambda event: time.sleep(float(pause)))  # fmt: skip
    Path(out).write_text(json.dumps([weights(model).hex(), result.metrics, result.losses]))
