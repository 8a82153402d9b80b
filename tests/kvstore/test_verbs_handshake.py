"""What both ends of a queue pair tell each other."""

import pytest

from kvstore.keyed_handshake import HandshakeError
from kvstore.traffic import TrafficClass
from kvstore.verbs_handshake import VERBS_DIALECT, Answer, PathClass, QueuePairEnd, Status, Wish

END = QueuePairEnd(
    qp_num=(1 << 24) - 1,
    first_psn=12345,
    lid=40000,
    link=2,
    mtu_code=5,
    reads_answered=16,
    reads_asked=8,
    gid=bytes(range(16)),
)


@pytest.mark.parametrize("traffic_class", list(TrafficClass))
def test_a_wish_arrives_as_it_was_sent(traffic_class):
    wish = Wish(b"r" * 16, traffic_class, 7, END)
    assert len(wish.pack()) == VERBS_DIALECT.wish_bytes
    assert Wish.unpack(wish.pack()) == wish


@pytest.mark.parametrize(
    "answer",
    [
        Answer(Status.OK, PathClass(2, 40), (1 << 32) - 1, (1 << 47) + 5, 1 << 40, END),
        Answer.refusal(Status.OTHER_INCARNATION),
    ],
    ids=["ok", "refusal"],
)
def test_an_answer_arrives_as_it_was_sent(answer):
    assert len(answer.pack()) == VERBS_DIALECT.answer_bytes
    assert Answer.unpack(answer.pack()) == answer


def test_a_class_that_does_not_exist_is_refused():
    data = bytearray(Wish(b"r" * 16, TrafficClass.KV, 0, END).pack())
    data[16] = 9
    with pytest.raises(HandshakeError, match="traffic class 9"):
        Wish.unpack(bytes(data))
