"""A DNS server for tests: `python answer_dns.py HOST PORT 'NAME TYPE DATA' …` answers these and knows nothing else."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


def answer(query: bytes, records: Iterable[tuple[str, str, str]]) -> bytes:
    asked = dns.message.from_wire(query)
    question = asked.question[0]
    reply = dns.message.make_response(asked)
    known = [record for record in records if record[0] == question.name.to_text(omit_final_dot=True)]
    said = [data for _, kind, data in known if kind == dns.rdatatype.to_text(question.rdtype)]
    if said:
        reply.answer.append(dns.rrset.from_text(question.name, 5, "IN", question.rdtype, *said))
    elif not known:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    return reply.to_wire(max_size=65535)


def serve(host: str, port: int, records: list[tuple[str, str, str]]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((host, port))
        print("ready", flush=True)
        while True:
            query, address = server.recvfrom(4096)
            server.sendto(answer(query, records), address)


if __name__ == "__main__":
    split = [record.split(" ", 2) for record in sys.argv[3:]]
    serve(sys.argv[1], int(sys.argv[2]), [(name, kind, data) for name, kind, data in split])
