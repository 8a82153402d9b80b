"""What the transport may be told."""

from dataclasses import replace

import pytest

from kvstore.transport_config import TransportConfig


@pytest.mark.parametrize("listen", ["127.0.0.1", "::1", "10.0.0.7", "node-7.cluster"])
def test_one_address_may_be_listened_at(listen):
    assert TransportConfig("tcp", listen, None, None, None).listen == listen


@pytest.mark.parametrize("listen", ["", "0.0.0.0", "::"])
def test_every_address_at_once_may_not(listen):
    with pytest.raises(ValueError, match=r"transport\.listen must be one address") as caught:
        TransportConfig("tcp", listen, None, None, None)
    assert repr(listen) in str(caught.value)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"kind must be one of auto, shm, tcp, verbs, nixl; got 'pigeon'"):
        TransportConfig("pigeon", "127.0.0.1", None, None, None)


@pytest.mark.parametrize(("name", "value"), [("device_port", 0), ("gid_index", -1)])
def test_numbers_of_an_rdma_port_have_bounds(name, value):
    with pytest.raises(ValueError, match=rf"transport\.{name} must be >= .* got {value}"):
        replace(TransportConfig("verbs", "127.0.0.1", None, None, None), **{name: value})
