"""The choice among servers, as a property of every sequence of calls, failures and probes."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bilateral_serving.client.balance import LAST_PROBE_S, Balancer, Outcome


class Balancing(RuleBasedStateMachine):
    """A balancer beside a plain account of what it was told."""

    @initialize(count=st.integers(2, 4), chance=st.floats(0, 1))
    def start(self, count: int, chance: float) -> None:
        self.now = 0.0
        self.balancer = Balancer(count, lambda: self.now, lambda: chance)
        self.load = [0] * count
        self.ejected: set[int] = set()
        self.silent = [0] * count
        self.probing: set[int] = set()

    @rule(tried=st.sets(st.integers(0, 3)))
    def call(self, tried: set[int]) -> None:
        every = range(len(self.load))
        chosen = self.balancer.choose(tried)
        good = set(every) - self.ejected or set(every)
        good = good - tried or good
        assert chosen in good
        assert self.load[chosen] == min(self.load[i] for i in good)
        self.balancer.began(chosen)
        self.load[chosen] += 1

    @precondition(lambda self: any(self.load))
    @rule(pick=st.integers(0, 99), outcome=st.sampled_from(Outcome))
    def end(self, pick: int, outcome: Outcome) -> None:
        busy = [i for i, load in enumerate(self.load) if load]
        server = busy[pick % len(busy)]
        self.balancer.ended(server)
        self.balancer.learn(server, outcome)
        self.load[server] -= 1
        self.silent[server] = {
            Outcome.ANSWERED: 0,
            Outcome.SILENT: self.silent[server] + 1,
            Outcome.AWAY: self.silent[server],
        }[outcome]
        if outcome is Outcome.AWAY or self.silent[server] >= 3:
            self.ejected.add(server)

    @rule(seconds=st.floats(0.01, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask_for_a_probe(self) -> None:
        server = self.balancer.probe_due()
        if server is not None:
            assert server in self.ejected - self.probing
            self.probing.add(server)

    @precondition(lambda self: self.probing)
    @rule(well=st.booleans())
    def answer_a_probe(self, well: bool) -> None:
        server = self.probing.pop()
        self.balancer.probed(server, well)
        if well:
            self.ejected.discard(server)
            self.silent[server] = 0

    @invariant()
    def every_ejected_server_is_probed_in_time(self) -> None:
        if not hasattr(self, "balancer"):
            return
        due, before = set(), self.now
        self.now += LAST_PROBE_S
        while (server := self.balancer.probe_due()) is not None:
            due.add(server)
        assert due == self.ejected - self.probing
        self.now = before
        self.probing |= due

    @invariant()
    def others_are_known(self) -> None:
        if hasattr(self, "balancer"):
            every = set(range(len(self.load)))
            for server in every:
                others = every - {server}
                assert self.balancer.has_other(others) == (server not in self.ejected)


TestBalancing = Balancing.TestCase
TestBalancing.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_equals_take_turns() -> None:
    balancer = Balancer(3)
    assert [balancer.choose() for _ in range(6)] == [0, 1, 2, 0, 1, 2]
