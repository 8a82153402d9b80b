"""The text of a TCP address names one port of one numeric address, or is refused."""

import socket

import pytest

from kvstore.tcp_address import TcpAddress


@pytest.mark.parametrize(
    ("address", "text", "family"),
    [
        (TcpAddress("127.0.0.1", 4000), "tcp:127.0.0.1:4000", socket.AF_INET),
        (TcpAddress("::1", 65535), "tcp:[::1]:65535", socket.AF_INET6),
    ],
)
def test_an_address_comes_back_as_it_was(address, text, family):
    assert str(address) == text
    assert TcpAddress.parse(text) == address
    assert address.family is family


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp:",
        "4000:7",
        "tcp:127.0.0.1",
        "tcp:127.0.0.1:",
        "tcp:127.0.0.1:0",
        "tcp:127.0.0.1:65536",
        "tcp:127.0.0.1:-1",
        "tcp:a.host:4000",
        "tcp:[::1:4000:x",
        "udp:127.0.0.1:4000",
    ],
)
def test_what_is_no_address_is_refused_and_named(text):
    with pytest.raises(ValueError, match=r"is no TCP address") as caught:
        TcpAddress.parse(text)
    assert repr(text) in str(caught.value)
