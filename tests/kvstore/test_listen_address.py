"""What a node listens at: one address of its own host, named in one of three ways."""

import socket

import pytest

from kvstore.errors import StagingError
from kvstore.listen_address import listen_address


@pytest.mark.parametrize(
    ("listen", "family", "ip"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("::1", socket.AF_INET6, "::1"),
        ("lo", socket.AF_INET, "127.0.0.1"),
    ],
)
def test_an_address_or_an_interface_names_one_address(listen, family, ip):
    assert listen_address(listen) == (family, ip)


def test_a_name_is_looked_up():
    assert listen_address("localhost")[1] in ("127.0.0.1", "::1")


@pytest.mark.parametrize("listen", ["", "0.0.0.0", "::"])
def test_every_network_at_once_is_refused(listen):
    with pytest.raises(StagingError, match=r"every network of this machine"):
        listen_address(listen)


def test_a_name_that_means_nothing_here_is_told():
    with pytest.raises(StagingError, match=r"transport.listen='no-such-interface0'"):
        listen_address("no-such-interface0")
