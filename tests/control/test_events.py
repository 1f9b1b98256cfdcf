from __future__ import annotations

from cortexd.control.events import BACKLOG, Events, FleetEvent


async def test_every_listener_hears_what_happens_after_it_joined() -> None:
    events = Events()
    events.tell("node_up", node="before")
    with events.listening(lambda: None) as one, events.listening(lambda: None) as other:
        events.tell("load_ready", node="a", model="m", seconds=1.5)
        for queue in (one, other):
            said = await queue.get()
            assert isinstance(said, FleetEvent)
            assert (said.event, said.node, said.model, said.seconds) == (
                ("load_ready", "a", "m", 1.5)
            )
            assert queue.empty()


async def test_one_that_is_too_far_behind_is_let_go_and_the_others_are_not() -> None:
    events, gone = Events(), []
    with (
        events.listening(lambda: gone.append("slow")) as slow,
        events.listening(lambda: gone.append("quick")) as quick,
    ):
        for number in range(BACKLOG + 5):
            events.tell("node_up", node=str(number))
            assert (await quick.get()) is not None
        assert gone == ["slow"]
        heard = [slow.get_nowait() for _ in range(slow.qsize())]
        assert heard[-1] is None
        assert len(heard) == BACKLOG


async def test_closing_ends_every_listener_once() -> None:
    events, gone = Events(), []
    with events.listening(lambda: gone.append("one")) as queue:
        events.close()
        events.close()
        events.tell("node_up", node="late")
        assert gone == ["one"]
        assert await queue.get() is None
        assert queue.empty()


def test_nobody_listens_and_nothing_is_made() -> None:
    events = Events()
    events.tell("node_up", node="a")
    events.close()
