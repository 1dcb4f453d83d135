"""The front door's rules without a server: turns, what a request says, how deep JSON is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from bilateral_serving.front_door import http_proxy, json_body, requests
from bilateral_serving.front_door.fair_queue import FairQueue, FullError

TEXTS = st.sampled_from(["", "a", "shared_memory_region", "shared_memory_offset", "sequence_id"])


class TestFairQueue:
    def test_a_free_slot_goes_to_the_next_caller_and_not_to_the_next_request(self) -> None:
        async def order() -> list[str]:
            queue, served = FairQueue(2, 2, 100, 100), []

            async def call(name: str) -> None:
                await queue.enter(name)
                served.append(name)
                await asyncio.sleep(0.01)
                queue.leave(name)

            many = [call("many") for _ in range(4)]
            await asyncio.gather(*many, *(call(name) for name in "aabb"))
            return served

        # Two of the first, who comes first; one of each other at once; then in turns.
        served = asyncio.run(order())
        assert served[:4] == ["many", "many", "a", "b"]
        assert sorted(served[4:7]) == ["a", "b", "many"]

    def test_one_caller_never_takes_all_slots(self) -> None:
        async def run() -> None:
            queue = FairQueue(10, 2, 100, 100)
            waiting = [asyncio.create_task(queue.enter("many")) for _ in range(20)]
            await asyncio.sleep(0)
            assert queue.running == 2
            await asyncio.wait_for(queue.enter("one"), 10)
            for task in waiting:
                task.cancel()

        asyncio.run(run())

    def test_who_waits_is_bounded_for_each_and_for_all(self) -> None:
        async def run() -> None:
            queue = FairQueue(1, 1, 2, 3)
            tasks = [asyncio.create_task(queue.enter(name)) for name in "aaabb"]
            await asyncio.sleep(0)
            assert (queue.running, queue.waiting) == (2, 3)
            for name in "ab":
                with pytest.raises(FullError):
                    await asyncio.wait_for(queue.enter(name), 10)
            for task in tasks:
                task.cancel()

        asyncio.run(run())

    @pytest.mark.parametrize("seed", range(20))
    def test_holds_its_limits_and_forgets_everybody_whatever_happens(self, seed: int) -> None:
        chance = random.Random(seed)
        slots, each = chance.randint(1, 6), chance.randint(1, 4)
        running: dict[str, int] = {}

        async def call(queue: FairQueue, name: str) -> None:
            try:
                await queue.enter(name)
            except FullError:
                return
            running[name] = running.get(name, 0) + 1
            assert running[name] <= each
            assert running[name] == 1 or sum(running.values()) <= slots + len(running)
            try:
                for _ in range(chance.randint(0, 5)):
                    await asyncio.sleep(0)
            finally:
                running[name] -= 1
                queue.leave(name)

        async def run() -> None:
            queue = FairQueue(slots, each, chance.randint(0, 10), chance.randint(0, 20))
            tasks = []
            for _ in range(300):
                tasks.append(asyncio.create_task(call(queue, chance.choice("abcdef"))))
                if chance.random() < 0.3:
                    chance.choice(tasks).cancel()
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
            failures = [r for r in results if r and not isinstance(r, asyncio.CancelledError)]
            assert failures == []
            assert (queue.running, queue.waiting, queue._callers) == (0, 0, {})

        asyncio.run(run())


@st.composite
def infer_requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=draw(TEXTS), id=draw(TEXTS))
    for _ in range(draw(st.integers(0, 3))):
        tensor = message.inputs.add(name=draw(TEXTS), datatype="BYTES", shape=[1])
        if draw(st.booleans()):
            tensor.contents.bytes_contents.append(draw(TEXTS).encode())
        if draw(st.booleans()):
            tensor.parameters[draw(TEXTS)].string_param = draw(TEXTS)
    for _ in range(draw(st.integers(0, 2))):
        output = message.outputs.add(name=draw(TEXTS))
        if draw(st.booleans()):
            output.parameters[draw(TEXTS)].string_param = draw(TEXTS)
    if draw(st.booleans()):
        message.parameters[draw(TEXTS)].int64_param = 1
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=300), max_size=3)))
    return message


def names_a_region(message: pb.ModelInferRequest) -> bool:
    """The definition, on the whole message."""
    return any(
        name.startswith("shared_memory")
        for part in (message, *message.inputs, *message.outputs)
        for name in part.parameters
    )


class TestRequests:
    @given(infer_requests())
    def test_the_envelope_is_the_message_without_the_tensors_bytes(
        self, message: pb.ModelInferRequest
    ) -> None:
        around = requests.envelope(message.SerializeToString())
        expected = pb.ModelInferRequest()
        expected.CopyFrom(message)
        del expected.raw_input_contents[:]
        assert pb.ModelInferRequest.FromString(around) == expected
        assert requests.refers_to_shared_memory(around) == names_a_region(message)

    @settings(max_examples=500)
    @given(infer_requests(), st.data())
    def test_no_damage_hides_a_region_from_it_that_protobuf_sees(
        self, message: pb.ModelInferRequest, data: st.DataObject
    ) -> None:
        damaged = bytearray(message.SerializeToString())
        for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        try:
            seen = names_a_region(pb.ModelInferRequest.FromString(bytes(damaged)))
        except Exception:
            return  # Triton refuses it
        with contextlib.suppress(ValueError):  # refused here already
            assert requests.refers_to_shared_memory(requests.envelope(bytes(damaged))) == seen


JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(['[[[{"', '\\"', "]]]", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


class TestJson:
    @given(JSON, st.integers(1, 8), st.booleans())
    def test_is_deeper_than_what_its_nesting_is(
        self, value: Any, limit: int, ascii_only: bool
    ) -> None:
        body = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert json_body.is_deeper_than(limit, body) == (depth(value) > limit)

    @pytest.mark.parametrize("body", [b'"' + b"\\" * 999_999, b'"' * 999_999, b'"[{' * 333_333])
    def test_takes_no_longer_for_what_is_no_json(self, body: bytes) -> None:
        assert json_body.is_deeper_than(64, b"[" * 65 + body)
        json_body.is_deeper_than(64, body)

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            (b'{"parameters": {"shared_memory_region": "x"}}', True),
            (b'{"parameters": {"\\u0073hared_memory_region": "x"}}', True),
            (b'[[{"shared_memory_offset": 1}]]', True),
            (b'{"data": ["shared_memory_region"]}', False),
            (b'{"data": ["\\u0073"]}', False),
        ],
    )
    def test_shared_memory_is_found_by_its_keys(self, body: bytes, found: bool) -> None:
        assert json_body.refers_to_shared_memory(body) == found

    def test_what_may_have_such_a_key_and_cannot_be_read_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="Expecting"):
            json_body.refers_to_shared_memory(b'{"shared_memory_region": }')


def test_an_http_connection_that_ends_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_proxy, "_HEADERS_TIMEOUT_S", 1e6)  # nothing is forgotten by time

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response()

    async def run() -> None:
        server = http_proxy.ConnectionServer(answer)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        for said in (b"", b"POST", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            address = listening.sockets[0].getsockname()
            _, writer = await asyncio.open_connection(*address)
            writer.write(said)
            await writer.drain()
            while not server.connections:
                await asyncio.sleep(0.01)
            writer.close()
            while server.connections or server.silent:
                await asyncio.sleep(0.01)
        listening.close()

    asyncio.run(asyncio.wait_for(run(), 60))
