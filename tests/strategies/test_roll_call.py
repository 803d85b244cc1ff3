"""Who is asked what it holds, and who is asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.common.constant import ErrorCode

from flower_ext.coding.assignment import HOLDINGS_KEY
from flower_ext.strategies.fleet import Fleet
from flower_ext.strategies.roll_call import RollCall

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import Message

ANSWER = {"partitions": [0, 1], "all": False, "num-partitions": 2, "worker": 0}


def test_a_failed_question_is_asked_again_unless_the_answer_is_known(
    error_reply: Callable[..., Message],
) -> None:
    fleet = Fleet()
    fleet.listed([7])
    roll_call = RollCall(fleet, None)
    (question,) = roll_call.questions([7], 60.0)
    assert list(question.content.config_records) == [HOLDINGS_KEY]
    failed = error_reply(question, ErrorCode.CLIENT_APP_CRASHED)

    roll_call.answered(7, failed, 10.0)

    assert roll_call.refused(7)
    assert (roll_call.due(14.9), roll_call.due(15.0), roll_call.due(99.0)) == (
        [],
        [7],
        [],
    )

    # Whoever has said before what it holds, and was asked to see whether it is at
    # work, has shown that it is not: it may be given work, and not a question beside.
    fleet.holds(7, ANSWER)
    roll_call.answered(7, failed, 20.0)

    assert not roll_call.refused(7)
    assert roll_call.due(99.0) == []
