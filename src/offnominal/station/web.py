"""The web process of a station that a supervisor looks after.

``python -m offnominal.station.web`` reads from its standard input one line of JSON: the ``options``
of the settings that the command line gave, and ``socket``, the number of the file that listens. It
ends when that input does.
"""

import json
import os
import socket
import sys
import threading

import uvicorn

from offnominal.station.app import create_app
from offnominal.station.inspection.order import standing_order
from offnominal.station.logs import set_up_logs
from offnominal.station.settings import Settings

__all__ = ["main"]

_LAST_WORDS = 15.0  # seconds in which open requests are answered


def main() -> None:
    """Entry point of the process."""
    server: list[uvicorn.Server] = []

    def end() -> None:
        for one in server:
            one.should_exit = True
        threading.Timer(_LAST_WORDS, os._exit, (1,)).start()

    told = json.loads(standing_order(end) or "null")
    if told is None:
        sys.exit("started by `offnominal serve`, which says what to do on its standard input")
    settings = Settings(**told["options"])
    set_up_logs(settings.log, "web")
    config = uvicorn.Config(
        create_app(settings, supervised=True),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # ``access.doors`` believes those of the settings
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=75,  # a line may make a part a minute, over one connection
        timeout_graceful_shutdown=int(_LAST_WORDS) - 5,
    )
    server.append(uvicorn.Server(config))
    server[0].run(sockets=[socket.socket(fileno=told["socket"])])


if __name__ == "__main__":
    main()
