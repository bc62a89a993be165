"""Two clients of Python's `websockets` meet at the node whose URL is the first argument."""

import asyncio
import json
import ssl
import sys

import websockets

URL = sys.argv[1]
TRUST_ANYTHING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TRUST_ANYTHING.check_hostname = False
TRUST_ANYTHING.verify_mode = ssl.CERT_NONE


async def authenticated(**params):
    endpoint = await websockets.connect(URL, ssl=TRUST_ANYTHING, max_size=None)
    request = {"id": 7, "method": "Authentication.Authenticate", "params": params}
    await endpoint.send(json.dumps(request))
    answer = json.loads(await endpoint.recv())
    assert answer["id"] == 7 and answer["status"] == "success", answer
    return endpoint


async def main():
    seed = await authenticated(token="python")
    later = await authenticated(token="python", uuid="u", name="later")
    assert await seed.recv() == '{"id":1,"notification":"Tunnel.Established"}\n'
    assert json.loads(await later.recv())["notification"] == "RemoteProxy.TunnelEstablished"
    for message in ["text", "", bytes(range(256)), "ä" * 100_000, bytes(3_000_000)]:
        await seed.send(message)
        assert await later.recv() == message
        await later.send(message)
        assert await seed.recv() == message
    await seed.ping()
    await seed.close()
    try:
        await later.recv()
        raise AssertionError("the tunnel did not end")
    except websockets.ConnectionClosed as closed:
        assert closed.rcvd.code == 1000, closed
    print("paired")


asyncio.run(asyncio.wait_for(main(), 30))
