"""``/v1/compress`` and ``/v1/retrieve``, through the gateway."""

import json

import pytest
from wire_parts import ANSWER, LOG, MESSAGES

from kompakt.compressor.models.tokenizers import load_tokenizer

for needed in ("httpx2", "prometheus_client", "starlette", "uvicorn"):
    pytest.importorskip(needed)

TOKENIZER = load_tokenizer()


def test_compress_and_retrieve(gateway):
    with gateway() as client:
        answer = client.post("/v1/compress", json={"messages": MESSAGES, "model": "m"}).json()
        assert [message["role"] for message in answer["messages"]] == ["user", "assistant", "tool"]
        assert answer["messages"][:2] == MESSAGES[:2]
        assert ANSWER in answer["messages"][2]["content"]
        assert answer["tokens_saved"] == answer["tokens_before"] - answer["tokens_after"] > 0
        assert answer["compression_ratio"] == round(answer["tokens_saved"] / answer["tokens_before"], 4)
        assert answer["transforms_applied"] == ["lexical"]
        [name] = answer["ccr_hashes"]
        assert answer["originals"] == [{"message": 2, "hash": name}]
        assert answer["messages"][2]["content"].endswith(f"\n[original: headroom_retrieve hash={name}]")
        after = sum(TOKENIZER.count(message["content"] or "") for message in answer["messages"])
        assert 0 <= answer["tokens_after"] - after <= 1
        assert client.get(f"/v1/retrieve/{name}").json()["content"] == LOG
        marked = client.post("/v1/compress", json={"messages": MESSAGES, "config": {"mode": "ccr"}}).json()
        assert marked["messages"] == answer["messages"]
    # another process finds the original
    with gateway() as client:
        assert client.get(f"/v1/retrieve/{name}").status_code == 200
        missing = client.get(f"/v1/retrieve/{'0' * 24}")
        assert (missing.status_code, "do not ask again" in missing.json()["error"]["message"]) == (404, True)
        assert client.get("/v1/retrieve/XYZ").status_code == 400


def test_what_is_frozen_or_bypassed_stays(gateway):
    with gateway() as client:
        for body, headers in (
            ({"config": {"frozen_message_count": 3}}, {}),
            ({}, {"x-headroom-bypass": "true"}),
        ):
            answer = client.post("/v1/compress", json={"messages": MESSAGES, **body}, headers=headers).json()
            assert answer["messages"] == MESSAGES
            assert (answer["tokens_saved"], answer["ccr_hashes"], answer["transforms_applied"]) == (0, [], [])
        inline = client.post("/v1/compress", json={"messages": MESSAGES, "config": {"mode": "lossy_inline"}}).json()
        assert inline["tokens_saved"] > 0
        assert (inline["ccr_hashes"], inline["originals"]) == ([], [])
        assert "headroom_retrieve" not in inline["messages"][2]["content"]


def test_json_stays_json_and_its_original_is_kept(gateway):
    rows = json.dumps([{"ship": n, "bells": 13 * n, "port": f"port {n % 7}"} for n in range(99)])
    messages = [*MESSAGES[:2], {**MESSAGES[2], "content": rows}]
    with gateway() as client:
        answer = client.post("/v1/compress", json={"messages": messages}).json()
        json.loads(answer["messages"][2]["content"])
        assert answer["ccr_hashes"] == []
        [original] = answer["originals"]
        assert client.get(f"/v1/retrieve/{original['hash']}").json()["content"] == rows


def test_what_saves_less_than_the_hash_of_its_original_stays(gateway):
    with gateway() as client:
        headers = {"x-kompakt-keep": "0.97"}
        text = " ".join(LOG.split(" ")[:330])
        messages = [*MESSAGES[:2], {**MESSAGES[2], "content": text}]
        for body in ({"messages": MESSAGES}, {"messages": messages}):
            answer = client.post("/v1/compress", json=body, headers=headers).json()
            assert answer["tokens_after"] <= answer["tokens_before"]
            assert (answer["messages"] == body["messages"]) == (answer["originals"] == [])


def test_logs_that_begin_like_json_have_the_hash_of_their_original_too(gateway):
    log = "\n".join(f"[2024-05-01 12:{n % 60:02}:00] INFO ship {n} left port {n % 7}" for n in range(99))
    with gateway() as client:
        body = {"messages": [*MESSAGES[:2], {**MESSAGES[2], "content": log}]}
        answer = client.post("/v1/compress", json=body).json()
        [name] = answer["ccr_hashes"]
        assert answer["messages"][2]["content"].endswith(f"hash={name}]")


def test_code_still_parses(gateway):
    code = "\n\n".join(f"def ship_{n}(bells):\n    total = bells * {n}\n    return total + {n}" for n in range(60))
    with gateway() as client:
        body = {"messages": [*MESSAGES[:2], {**MESSAGES[2], "content": code}]}
        answer = client.post("/v1/compress", json=body).json()
    assert answer["messages"][2]["content"] != code
    compile(answer["messages"][2]["content"], "ships", "exec")


def test_an_old_question_is_not_taken_for_the_live_one(gateway):
    """Some callers keep back what the assistant said, and the last question."""
    old = {"role": "user", "content": "What did ship 51 carry?"}
    with gateway() as client:
        known = client.post("/v1/compress", json={"messages": [old, *MESSAGES[1:]]}).json()
        withheld = client.post("/v1/compress", json={"messages": [old, MESSAGES[2]]}).json()
    assert "Ship 51 left" in known["messages"][2]["content"]
    assert "Ship 51 left" not in withheld["messages"][1]["content"] != LOG


def test_blocks_of_anthropic_are_compressed_too(gateway):
    messages = [
        {"role": "user", "content": "How many bells did ship 30 carry?"},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": LOG}]},
    ]
    with gateway() as client:
        answer = client.post("/v1/compress", json={"messages": messages}).json()
    assert ANSWER in answer["messages"][1]["content"][0]["content"] != LOG


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "messages must be a list of objects"),
        (b'{"messages": [1]}', "messages must be a list of objects"),
        (b'{"messages": [], "config": 3}', "config must be an object"),
        (b'{"messages": [], "config": {"ratio": 1}}', "config has no option 'ratio'"),
        (b'{"messages": [], "config": {"mode": "x"}}', "mode must be null"),
        (b'{"messages": [], "config": {"frozen_message_count": -1}}', "frozen_message_count"),
    ],
)
def test_what_cannot_be_compressed_is_named(gateway, body, message):
    with gateway() as client:
        answer = client.post("/v1/compress", content=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_what_is_nested_too_deep_is_an_error_of_the_caller(gateway):
    with gateway() as client:
        for depth in range(900, 1010, 5):
            body = b'{"messages": [{"a": ' + b"[" * depth + b"]" * depth + b"}]}"
            assert client.post("/v1/compress", content=body).status_code in (200, 400)


def test_who_has_another_key_finds_nothing_of_mine(gateway):
    mine, theirs = ({"authorization": f"Bearer {key}"} for key in ("mine", "theirs"))
    with gateway() as client:
        body = {"messages": MESSAGES}
        [name] = client.post("/v1/compress", json=body, headers=mine).json()["ccr_hashes"]
        assert client.get(f"/v1/retrieve/{name}", headers=mine).status_code == 200
        assert client.get(f"/v1/retrieve/{name}", headers=theirs).status_code == 404
        assert client.get(f"/v1/retrieve/{name}").status_code == 404
