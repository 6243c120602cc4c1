"""The endpoint over an injected client everywhere, and over HTTP where `openai` is installed."""

import importlib.util
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch

from sidrec.alignment.judge.judge import Judge, JudgeConfig
from sidrec.errors import ConfigError, MissingExtra, ServiceError

SETTINGS = {"backend": "endpoint", "model": "tiny", "weights": "uniform", "pause_seconds": 0.0}
needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="needs the package openai (extra llm)"
)


def counts(judge):
    return {name: count for name, count in judge.counts().items() if count and name != "seconds"}


class Client:
    """Speaks the protocol of `openai.OpenAI` as far as it is used."""

    def __init__(self, answer):
        self.answer, self.requests = answer, []
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, **request):
        self.requests.append(request)
        schema = request["response_format"]["json_schema"]["schema"]
        message = SimpleNamespace(content=self.answer(request["messages"], schema))
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")])


def test_a_client_is_asked_with_schema_and_temperature_0(context, rollouts, fakes):
    client = Client(fakes.good)
    judge = Judge.build(context, JudgeConfig(**SETTINGS), client=client)
    assert torch.isfinite(judge(rollouts)[rollouts.real_BG]).all()
    request = client.requests[0]
    assert request["temperature"] == 0 and request["model"] == "tiny"
    assert request["response_format"]["json_schema"]["strict"]
    assert [m["role"] for m in request["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("error", "count"),
    [(TimeoutError("slow"), "timeouts"), (ConnectionError("gone"), "failures")],
)
def test_a_client_that_fails_is_survived(context, rollouts, error, count):
    def fails(messages, schema):
        raise error

    settings = SETTINGS | {"retries": 0}
    judge = Judge.build(context, JudgeConfig(**settings), client=Client(fails))
    assert judge(rollouts).isnan().all()
    assert counts(judge)[count] == 3


def test_an_answer_without_text_is_a_failure(context, rollouts):
    judge = Judge.build(
        context, JudgeConfig(**(SETTINGS | {"retries": 0})), client=Client(lambda *_: None)
    )
    assert judge(rollouts).isnan().all() and counts(judge)["failures"] == 3


def test_a_key_that_is_not_set_is_said_before_anything_is_sent(context, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="names NO_SUCH_KEY, which is not set"):
        Judge.build(context, JudgeConfig(**SETTINGS, api_key_variable="NO_SUCH_KEY"))


@pytest.mark.skipif(importlib.util.find_spec("openai") is not None, reason="openai is installed")
def test_a_missing_package_names_its_extra(context):
    with pytest.raises(MissingExtra, match=r"pip install 'sidrec\[llm\]'"):
        Judge.build(context, JudgeConfig(**SETTINGS))


@pytest.fixture
def served(fakes):
    """A server on this machine; `script` is a list of what it does, the last one for ever."""
    state = SimpleNamespace(script=["good"], requests=[], release=threading.Event())

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((request, self.headers["Authorization"]))
            what = state.script.pop(0) if len(state.script) > 1 else state.script[0]
            if what == "hang":
                state.release.wait(5)
            schema = request["response_format"]["json_schema"]["schema"]
            if isinstance(what, int):
                self.reply(what, {"error": {"message": "no", "type": "server_error"}})
                return
            texts = {"hang": fakes.good, "good": fakes.good, "prose": fakes.prose,
                     "unknown": fakes.with_unknown, "level": fakes.out_of_range}  # fmt: skip
            message = {"role": "assistant", "content": texts[what](request["messages"], schema)}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            self.reply(
                200,
                {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny",
                 "choices": [choice]},
            )  # fmt: skip

        def reply(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:  # the client has hung up
                return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    state.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def over_http(context, served, **settings):
    config = JudgeConfig(**(SETTINGS | {"base_url": served.url, "retries": 1} | settings))
    return Judge.build(context, config)


@needs_openai
def test_over_http_a_good_server_judges_and_gets_the_named_key(
    context, rollouts, served, monkeypatch
):
    monkeypatch.setenv("TINY_KEY", "secret")
    judge = over_http(context, served, api_key_variable="TINY_KEY")
    assert torch.isfinite(judge(rollouts)[rollouts.real_BG]).all()
    assert counts(judge) == {"calls": 3}
    assert served.requests[0][1] == "Bearer secret"
    assert "secret" not in repr(judge.backend)


@needs_openai
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (["prose", "good"], {"calls": 4, "retries": 1, "malformed": 1}),
        (["level", "good"], {"calls": 4, "retries": 1, "malformed": 1}),
        (["unknown", "good"], {"calls": 3, "unknown_items": 1}),
        ([500, "good"], {"calls": 4, "retries": 1, "failures": 1}),
        ([429, "good"], {"calls": 4, "retries": 1, "failures": 1}),
        (["hang", "good"], {"calls": 4, "retries": 1, "timeouts": 1}),
    ],
)
def test_over_http_trouble_is_counted_and_survived(context, rollouts, served, script, expected):
    served.script = list(script)
    judge = over_http(context, served, timeout_seconds=0.5)
    assert torch.isfinite(judge(rollouts)[rollouts.real_BG]).all()
    assert counts(judge) == expected


@needs_openai
def test_over_http_a_server_that_never_answers_costs_no_more_than_its_timeouts(
    context, rollouts, served
):
    served.script = ["hang"]
    judge = over_http(context, served, timeout_seconds=0.2, retries=0, give_up_after=2)
    start = time.perf_counter()
    assert judge(rollouts).isnan().all()
    assert time.perf_counter() - start < 3
    assert counts(judge)["timeouts"] == 2 and counts(judge)["given_up"] == 3


@needs_openai
def test_over_http_a_wrong_key_ends_the_run_with_what_to_check(context, rollouts, served):
    served.script = [401]
    with pytest.raises(ServiceError, match=r"refused model 'tiny' \(status 401\).*check judge"):
        over_http(context, served)(rollouts)


@needs_openai
def test_over_http_no_server_is_survived(context, rollouts):
    config = JudgeConfig(**SETTINGS, base_url="http://127.0.0.1:9/v1", retries=0)
    judge = Judge.build(context, config)
    assert judge(rollouts).isnan().all() and counts(judge)["failures"] == 3
