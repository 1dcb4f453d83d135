"""The process between callers and Triton: it keeps what a caller does from the server's others.

Started as `python -m bilateral_serving.front_door`; reads `FrontDoorOptions` as JSON from standard
input up to its end, and writes one line of JSON, `Listening`, when it listens.
"""

from bilateral_serving.front_door.options import FrontDoorOptions as FrontDoorOptions
from bilateral_serving.front_door.options import Listening as Listening
