"""Which network addresses a policy may make this machine talk to: those of the public internet, and no others.

A page that a policy names can point anywhere, at the cloud's metadata service or at a neighbour's unprotected port. The
tables follow IANA's registries of special-purpose addresses, instead of the standard library's ``is_global``, whose
meaning changed between versions of Python.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

SPECIAL_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a provider's customers
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a service of one cloud inside each of its machines, though the address looks public
        "169.254.0.0/16",  # link-local, with most clouds' metadata service
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
PUBLIC_IPV6 = IPv6Network("2000::/3")
SPECIAL_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments; Teredo, which wraps IPv4, is one
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which wraps IPv4
        "3fff::/20",  # documentation
    )
)
TRANSLATED_IPV4 = IPv6Network("64:ff9b::/96")  # NAT64: the last 32 bits are the IPv4 address that is reached


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet.

    An IPv6 address that stands for an IPv4 address (``::ffff:10.0.0.1``, ``64:ff9b::10.0.0.1``) is as public as that.

    >>> is_public("93.184.215.14"), is_public("169.254.169.254"), is_public("::ffff:127.0.0.1")
    (True, False, False)

    Raises:
        ValueError: It is no address.
    """
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        wrapped = parsed.ipv4_mapped
        if parsed in TRANSLATED_IPV4:
            wrapped = IPv4Address(parsed.packed[-4:])
        if wrapped is None:
            return parsed in PUBLIC_IPV6 and not any(parsed in network for network in SPECIAL_IPV6)
        parsed = wrapped
    return not any(parsed in network for network in SPECIAL_IPV4)
