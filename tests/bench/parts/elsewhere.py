"""Figures of peers that are not measured here: measured once, with another generator that works in
the same way (checked messages, one write each, no TLS session resumed), on 2 cores of
an Intel Xeon as a virtual machine, Debian 12, medians of 3 runs, 2026-11-22.

The original servers had an RSA key of 2048 bits (they take no other), Qt 5.15.8, an authenticator
that says yes, and their statistics file on a RAM disk."""

CITED = "measured earlier, on 2 cores of an Intel Xeon"


# By figure: the value, or none if it was not measured.
ORIGINALS = {
    "nymea-remoteproxy 0.1.7 (WebSocket)": {
        "cpu-16KiB-8/cpu": 9.93,
        "cpu-64KiB-8/cpu": 5.94,
        "cpu-16KiB-1/cpu": 6.99,
        "cpu-64KiB-1/cpu": 4.00,
        "cpu-1KiB-1/cpu": 75.2,
        "round-trip/cpu": 316,
        "round-trip/p99": 1.121,
        "round-trip/p50": 0.394,
        "setup/cpu": 4.52,
        "setup/p50": 51.5,
        "idle/idle": 94.8,
    },
    "nymea-remoteproxy 1.13.0 (TLS)": {
        "cpu-16KiB-8/cpu": 35.9,
        "cpu-64KiB-8/cpu": 42.0,
        "cpu-16KiB-1/cpu": 34.7,
        "cpu-64KiB-1/cpu": 40.6,
        "cpu-1KiB-8/cpu": 53.3,
        "cpu-1KiB-1/cpu": 40.4,
        "round-trip/cpu": 132,
        "round-trip/p99": 0.719,
        "round-trip/p50": 0.229,
        "setup/cpu": 3.58,
        "setup/p50": 42.7,
        "idle/idle": 78.5,
    },
}
