"""The wires' contracts: .proto files and the code generated from them. No logic lives here.

`admission` is carried by hand, `feed` is what is stored and signed, `ticket` what opens a node, `control` the gRPC
services, `lane` the heads of the calls on the lane. `bin/generate` writes the generated modules; `bin/check` fails
when they are stale.
"""

__all__ = ["admission_pb2", "control_pb2", "control_pb2_grpc", "feed_pb2", "lane_pb2", "ticket_pb2"]
