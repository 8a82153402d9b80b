"""What every test marked `rdma` may count on in the guest: two devices whose packets cross a cable."""

import ipaddress
from pathlib import Path

import pytest

DEVICES = Path("/sys/class/infiniband")

pytestmark = [
    pytest.mark.rdma,
    pytest.mark.skipif(
        any(DEVICES.glob("*")) and not (DEVICES / "rxe0").exists(),
        reason="these are RDMA devices of hardware",
    ),
]


def test_two_devices_are_up_and_have_addresses_of_roce_v2():
    for number, device in enumerate(("rxe0", "rxe1"), 1):
        port = DEVICES / device / "ports" / "1"
        assert (port / "state").read_text().strip() == "4: ACTIVE"
        assert (port / "gid_attrs" / "types" / "1").read_text().strip() == "RoCE v2"
        gid = ipaddress.IPv6Address((port / "gids" / "1").read_text().strip())
        assert gid.ipv4_mapped == ipaddress.IPv4Address(f"10.9.0.{number}")


def test_pyverbs_finds_them():
    from pyverbs.device import get_device_list

    names = {device.name.decode() for device in get_device_list()}
    assert {"rxe0", "rxe1"} <= names
