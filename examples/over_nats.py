"""The same two processes over NATS JetStream: only the address differs.

pip install 'ilcp[nats]'; apt-get install nats-server
nats-server -js &
python examples/over_nats.py [nats://127.0.0.1:4222]
"""

import sys

from two_processes import main

if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222")
