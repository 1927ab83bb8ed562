"""The protocol of the playground, over real connections."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.errors import SettingsError, TokenizerError
from nanolm.inference.activations import activations
from nanolm.inference.engine import Engine
from nanolm.inference.load import load_run
from nanolm.inference.prompt import MAX_CHARACTERS
from nanolm.inference.settings import GenerationSettings
from nanolm.inference.weight_formats import WeightFormat
from nanolm.playground.requests import MAX_BODY_BYTES
from nanolm.playground.server import PlaygroundServer
from nanolm.playground.session import playground_runs
from tests.forks import Forked
from tests.helpers import Nanolm, wait_until

BIGRAM, GPT = 0, 1
PROMPT = "12 and 13 make"


class Client:
    """Sends requests to a playground."""

    def __init__(self, server: PlaygroundServer) -> None:
        self.server = server

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)

    def send(
        self, method: str, place: str = "", body: str | bytes | None = None, token: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body; underscores in the names of headers are hyphens."""
        connection = self.connection()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"/{token or self.server.token}/{place}", body, named)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, dict(response.headers), content

    def post(self, place: str, fields: Any, **headers: str) -> tuple[int, Any]:
        body = fields if isinstance(fields, str | bytes) else json.dumps(fields)
        status, _, content = self.send("POST", place, body, **{"Content_Type": "application/json", **headers})
        lines = [json.loads(line) for line in content.splitlines()]
        return status, lines if status == 200 and place == "generate" else lines[0]

    def write(self, run: int, prompt: str = PROMPT, **settings: Any) -> list[dict[str, Any]]:
        status, events = self.post("generate", {"run": run, "prompt": prompt, "settings": settings})
        assert status == 200
        return events


@pytest.fixture(scope="module")
def client(pair: Path) -> Iterator[Client]:
    loaded = [load_run(str(pair / name), device="cpu") for name in ("bigram", "gpt")]
    server = PlaygroundServer(playground_runs(loaded), port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Client(server)
    server.shutdown()
    thread.join()
    server.close()


def test_page_has_no_inline_code_and_forbids_other_sources(client: Client) -> None:
    status, headers, page = client.send("GET")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
    assert b"://" not in page
    assert b" on" not in page.split(b"<body>")[1].replace(b" on ", b"")
    assert client.send("GET", "page.js")[1]["Content-Type"].startswith("text/javascript")
    assert client.send("GET", "page.css")[1]["Content-Type"].startswith("text/css")


def test_runs_are_described(client: Client) -> None:
    status, _, content = client.send("GET", "runs")
    bigram, gpt = json.loads(content)["runs"]
    assert status == 200
    assert (bigram["name"], bigram["has_attention"]) == ("bigram", False)
    assert (gpt["name"], gpt["has_attention"], gpt["context_length"]) == ("gpt", True, 16)
    assert gpt["parameters"] > bigram["parameters"] > 0


@pytest.mark.parametrize("run", [BIGRAM, GPT])
def test_events_are_the_tokens_of_the_engine(client: Client, pair: Path, run: int) -> None:
    engine = Engine.of(load_run(str(pair / ("bigram", "gpt")[run]), device="cpu"))
    settings = GenerationSettings(max_new_tokens=25, temperature=0.8, top_k=20, top_p=0.9, seed=3, alternatives=10)
    expected = engine.generate(PROMPT, settings)[0]
    start, *tokens, end = client.write(run, max_new_tokens=25, temperature=0.8, top_k=20, top_p=0.9, seed=3)
    assert "".join(token["text"] for token in start["prompt"]) == PROMPT
    assert start["ids"] == [token["id"] for token in start["prompt"]] == list(expected.prompt.tokens)
    assert [token["id"] for token in tokens] == [token.id for token in expected.tokens]
    assert "".join(token["text"] for token in tokens) == expected.text
    for token, wanted in zip(tokens, expected.tokens, strict=True):
        assert token["probability"] == pytest.approx(wanted.probability)
        assert [each["id"] for each in token["alternatives"]] == [each.id for each in wanted.alternatives]
        assert len(token["alternatives"]) == 10
    assert (end["finish"], end["tokens"]) == ("length", 25)
    assert end["loss"] == pytest.approx(-sum(token.log_probability for token in expected.tokens) / 25)


def test_empty_prompt_says_where_it_starts(client: Client) -> None:
    start, *_ = client.write(GPT, prompt="", max_new_tokens=1)
    assert start["note"] == "the prompt is empty: the text starts from a line end"
    assert [token["text"] for token in start["prompt"]] == [""]


def test_two_tabs_are_served_at_the_same_time(client: Client) -> None:
    alone = [client.write(GPT, seed=seed, max_new_tokens=40)[1:-1] for seed in range(2)]
    tokens = [token["id"] for token in client.write(GPT, seed=9, max_new_tokens=1)[0]["prompt"]]
    with ThreadPoolExecutor(4) as pool:
        texts = [pool.submit(client.write, GPT, seed=seed, max_new_tokens=40) for seed in range(2)]
        maps = [
            pool.submit(client.post, "attention", {"run": GPT, "tokens": tokens, "length": len(tokens)})
            for _ in range(8)
        ]
        assert [text.result()[1:-1] for text in texts] == alone
        assert len({json.dumps(each.result()) for each in maps}) == 1


def test_attention_is_that_of_the_activations(client: Client, pair: Path) -> None:
    run = load_run(str(pair / "gpt"), device="cpu")
    recorded = activations(run, PROMPT)
    ids = recorded.ids.tolist()
    status, found = client.post("attention", {"run": GPT, "tokens": ids, "length": len(ids)})
    assert (status, found["start"]) == (200, 0)
    for layer, heads in enumerate(found["weights"]):
        expected = recorded[f"blocks.{layer}.attention.weights"][:, -1]
        torch.testing.assert_close(torch.tensor(heads) / 1000, expected, atol=6e-4, rtol=0)


def test_attention_reads_the_context_of_a_long_text(client: Client, pair: Path) -> None:
    run = load_run(str(pair / "gpt"), device="cpu")
    ids = run.tokenizer.encode(PROMPT * 3).tolist()
    # A context of 16 tokens, of which 4 are dropped at once.
    start = -(-(len(ids) - 16) // 4) * 4
    assert client.post("attention", {"run": GPT, "tokens": ids[-16:], "length": len(ids)}) == client.post(
        "attention", {"run": GPT, "tokens": ids, "length": len(ids)}
    )
    status, found = client.post("attention", {"run": GPT, "tokens": ids, "length": len(ids)})
    assert (status, found["start"], len(found["weights"][0][0])) == (200, start, len(ids) - start)
    part = run.tokenizer.decode(ids[start:])
    expected = activations(run, part)["blocks.0.attention.weights"][:, -1]
    torch.testing.assert_close(torch.tensor(found["weights"][0]) / 1000, expected, atol=6e-4, rtol=0)


@pytest.mark.parametrize("weight_format", [WeightFormat.bfloat16, WeightFormat.int8])
def test_attention_of_converted_weights(pair: Path, weight_format: WeightFormat) -> None:
    (run,) = playground_runs([load_run(str(pair / "gpt"), device="cpu", weight_format=weight_format)])
    weights = torch.tensor(run.attention([3, 1, 4, 1, 5], 5)["weights"])
    torch.testing.assert_close(weights.sum(-1) / 1000, torch.ones(2, 2), atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"run": BIGRAM, "tokens": [1], "length": 1}, "the model bigram has no attention"),
        ({"run": GPT, "tokens": [10**6], "length": 1}, "a token is not in the vocabulary"),
        ({"run": GPT, "tokens": [-1], "length": 1}, "a token is not in the vocabulary"),
        ({"run": GPT, "tokens": [1], "length": 9}, "there are 1 tokens"),
        ({"run": GPT, "tokens": [1, 2], "length": 1}, "length is 1, which is less than the number of tokens"),
        ({"run": GPT, "tokens": [], "length": 1}, "tokens is a list, which is not a list of tokens"),
        ({"run": GPT, "tokens": [True], "length": 1}, "tokens is a list, which is not a list of tokens"),
        ({"run": GPT, "tokens": [1], "length": None}, "length is null, which is not a whole number"),
    ],
)
def test_wrong_requests_for_attention_are_refused(client: Client, fields: Any, found: str) -> None:
    status, content = client.post("attention", fields)
    assert (status, content["errors"][0]["found"]) == (400, found)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"top_k": 0}, ["--top-k is 0"]),
        ({"top_p": 0, "min_p": 2}, ["--top-p is 0.0", "--min-p is 2.0"]),
        ({"temperature": -1, "seed": -1, "max_new_tokens": 0}, ["--max-new-tokens", "--temperature", "--seed"]),
        ({"max_new_tokens": 10**9}, ["--max-new-tokens is 1000000000"]),
        ({"temperature": "hot"}, ["temperature is 'hot', which is not a number"]),
        ({"temperature": True}, ["temperature is true, which is not a number"]),
        ({"temperature": 10**400}, ["temperature is 1000"]),
        ({"top_k": 1.5}, ["top_k is 1.5, which is not a whole number"]),
        ({"seed": 2**63}, ["--seed is 9223372036854775808"]),
        ({"top": 1}, ["unknown field 'top'"]),
    ],
)
def test_wrong_settings_are_all_refused_at_once(client: Client, settings: Any, found: list[str]) -> None:
    status, content = client.post("generate", {"run": GPT, "prompt": "1", "settings": settings})
    assert status == 400
    assert len(content["errors"]) == len(found)
    for error, beginning in zip(content["errors"], found, strict=True):
        assert error["found"].startswith(beginning)
        assert error["hint"]


@pytest.mark.parametrize(
    "body",
    ["{", "", "[]", "null", "{'run': 0}", '{"run": NaN}', "[" * 100_000, b"\xff\xfe{", '{"run": 0} {}', "1" * 5000],
    ids=range(10),
)
def test_invalid_json_is_refused(client: Client, body: str | bytes) -> None:
    status, content = client.post("generate", body)
    assert status == 400
    assert content["errors"][0]["found"].startswith("the request is not")


@pytest.mark.parametrize(
    "fields",
    [
        {"run": 2},
        {"run": -1},
        {"run": "0"},
        {},
        {"run": 0, "prompt": None},
        {"run": 0, "prompt": "\ud800"},
        {"run": 0, "prompt": "1", "settings": []},
        {"run": 0, "prompt": "1", "path": "/"},
    ],
)
def test_wrong_fields_are_refused(client: Client, fields: Any) -> None:
    status, content = client.post("generate", fields)
    assert (status, len(content["errors"])) == (400, 1)


def test_unknown_character_has_the_message_of_the_command(client: Client, pair: Path) -> None:
    engine = Engine.of(load_run(str(pair / "gpt"), device="cpu"))
    with pytest.raises(TokenizerError) as raised:
        engine.stream("12 € <b>")
    status, content = client.post("generate", {"run": GPT, "prompt": "12 € <b>"})
    assert status == 400
    assert content["errors"] == [
        {"found": raised.value.found, "where": raised.value.where, "hint": raised.value.hint},
    ]


@pytest.mark.parametrize("size", [MAX_CHARACTERS + 1, 1_000_000, MAX_BODY_BYTES, 20_000_000])
def test_prompt_that_is_too_long_is_refused_with_the_limit(client: Client, size: int) -> None:
    status, content = client.post("generate", {"run": BIGRAM, "prompt": "1" * size})
    assert status == 413
    limit = MAX_CHARACTERS if size < MAX_BODY_BYTES else MAX_BODY_BYTES
    assert f"at most {limit:,}" in content["errors"][0]["hint"]


def test_longest_prompt_is_accepted(client: Client) -> None:
    start, *_ = client.write(BIGRAM, prompt="1" * MAX_CHARACTERS, max_new_tokens=1)
    assert start["length"] == MAX_CHARACTERS
    assert len(start["prompt"]) == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8765"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "127.0.0.1:80@evil.example"},
        {"Host": ""},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
        {"token": "x"},
        {"token": "../x"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("method", "place"), [("GET", ""), ("GET", "runs"), ("POST", "generate")])
def test_requests_of_others_are_refused(client: Client, headers: dict[str, str], method: str, place: str) -> None:
    body = json.dumps({"run": BIGRAM, "prompt": "1"}) if method == "POST" else None
    status, _, content = client.send(method, place, body, **{"Content_Type": "application/json", **headers})
    assert status == 403
    assert client.server.token.encode() not in content


def test_request_without_a_token_is_refused(client: Client) -> None:
    for path in ("/", "/runs", "//", "*", "/%2e%2e/", f"http://127.0.0.1/{client.server.token}/"):
        connection = client.connection()
        connection.request("GET", path)
        assert connection.getresponse().status == 403, path
        connection.close()


def test_page_is_served_to_its_own_origin_and_through_tunnels(client: Client) -> None:
    for host in ("127.0.0.1:9", "localhost:9", "localhost", "LOCALHOST:9"):
        own = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert client.send("GET", "runs", **own)[0] == 200
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert client.send("GET", **link)[0] == 200
    assert client.send("GET", **{**link, "Sec_Fetch_Dest": "iframe"})[0] == 403


@pytest.mark.parametrize(
    ("method", "place", "allowed"),
    [
        ("HEAD", "", "GET"),
        ("PUT", "", "GET"),
        ("POST", "", "GET"),
        ("DELETE", "runs", "GET"),
        ("OPTIONS", "generate", "POST"),
        ("GET", "generate", "POST"),
        ("PATCH", "attention", "POST"),
    ],
)
def test_other_methods_are_not_allowed(client: Client, method: str, place: str, allowed: str) -> None:
    status, headers, _ = client.send(method, place)
    assert (status, headers["Allow"]) == (405, allowed)


def test_unknown_addresses_and_content_types(client: Client) -> None:
    assert client.send("GET", "../../etc/passwd")[0] == 404
    assert client.send("GET", "page.css/")[0] == 404
    assert client.send("POST", "generate", "{}", Content_Type="text/plain")[0] == 415
    assert client.send("POST", "generate", "{}")[0] == 415
    status, _, _ = client.send("GET", "?a=b")
    assert status == 200
    connection = client.connection()
    connection.request("GET", f"/{client.server.token}")
    response = connection.getresponse()
    assert (response.status, response.headers["Location"]) == (308, f"/{client.server.token}/")
    connection.close()


def test_several_requests_use_one_connection(client: Client) -> None:
    connection = client.connection()
    headers = {"Content-Type": "application/json"}
    for body in ('{"run": 0, "prompt": "1", "settings": {"max_new_tokens": 2}}', "{", '{"run": 9}'):
        connection.request("POST", f"/{client.server.token}/generate", body, headers)
        connection.getresponse().read()
    connection.request("GET", f"/{client.server.token}/runs")
    assert connection.getresponse().status == 200
    connection.close()


def test_text_ends_when_the_browser_goes_away(client: Client) -> None:
    connection = client.connection()
    body = json.dumps({"run": GPT, "prompt": "1", "settings": {"max_new_tokens": 10_000}})
    connection.request("POST", f"/{client.server.token}/generate", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert json.loads(response.readline())["type"] == "start"
    assert json.loads(response.readline())["type"] == "token"
    assert client.server.n_streams == 1
    response.close()
    connection.close()
    deadline = time.monotonic() + 5
    while client.server.n_streams:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.write(GPT, max_new_tokens=3)[-1]["tokens"] == 3


def test_taken_port_is_followed_by_the_next(client: Client) -> None:
    port = client.server.server_port
    second = PlaygroundServer(client.server.runs, port)
    try:
        assert port < second.server_port < port + 100
        assert second.token != client.server.token
    finally:
        second.close()
    with pytest.raises(SettingsError, match="--port 0 chooses"):
        PlaygroundServer([], 65536)


def test_closing_ends_texts(pair: Path) -> None:
    server = PlaygroundServer(playground_runs([load_run(str(pair / "gpt"), device="cpu")]), port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    client = Client(server)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(client.write, 0, max_new_tokens=10_000)
        deadline = time.monotonic() + 30
        while not server.n_streams:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.shutdown()
        server.close()
        thread.join()
        assert text.result()[-1]["finish"] == "stopped"


def test_names_of_runs_differ(pair: Path) -> None:
    loaded = load_run(str(pair / "bigram"), device="cpu")
    assert [run.name for run in playground_runs([loaded])] == ["bigram"]
    assert [run.name for run in playground_runs([loaded, loaded])] == ["bigram (1)", "bigram (2)"]


@pytest.mark.slow
def test_command_prints_the_address_and_ends_with_ctrl_c(nanolm: Nanolm, pair: Path) -> None:
    process = nanolm.start("playground", str(pair / "bigram"), str(pair / "gpt"), "--port", "0", "--device", "cpu")
    assert isinstance(process, Forked)
    wait_until(lambda: process.stdout_so_far().endswith("/\n"), process)
    url = process.stdout_so_far().strip()
    connection = http.client.HTTPConnection("127.0.0.1", int(url.split(":")[2].split("/")[0]), timeout=30)
    connection.request("GET", f"/{url.split('/', 3)[3]}runs")
    assert [run["name"] for run in json.load(connection.getresponse())["runs"]] == ["bigram", "gpt"]
    connection.close()
    # A text that is being written does not delay the end.
    connection = http.client.HTTPConnection("127.0.0.1", int(url.split(":")[2].split("/")[0]), timeout=30)
    body = json.dumps({"run": GPT, "prompt": "1", "settings": {"max_new_tokens": 10_000}})
    connection.request("POST", f"/{url.split('/', 3)[3]}generate", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert json.loads(response.readline())["type"] == "start"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(30)
    assert process.returncode == 130
    assert out.strip() == url
    assert "Traceback" not in err
    assert "Ctrl-C" in err
    assert json.loads(response.read().splitlines()[-1])["finish"] == "stopped"
    connection.close()


def test_command_reports_the_mistakes_of_both_runs(nanolm: Nanolm, tmp_path: Path) -> None:
    failed = nanolm("playground", "missing", "also_missing", "--port", "0")
    assert failed.returncode == 2
    assert "missing" in failed.stderr
    assert "also_missing" in failed.stderr
    assert failed.stderr.count("hint:") >= 2
    assert nanolm("playground", "missing", "--port", "65536").returncode == 2
